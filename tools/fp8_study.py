#!/usr/bin/env python3
"""What rounding to e4m3 costs SmolLM2, part by part: mean KL against float32 over the token ids of tests/golden/smollm2 (the
positions that `ekiben check` and the model tests compare), and the perplexity of tests/golden/perplexity.txt in windows of
512 tokens. Forms are those of `--dtype fp8` and `--kv_cache_dtype fp8`: a factor a row of a weight (an output channel), a factor
a token of a linear's input, keys and values with scale 1; sums in float32. numpy, minutes on two cores.

usage: fp8_study.py model.gguf [-o bench/results/fp8_study.json]     (pip: numpy gguf tokenizers)
"""
import argparse
import json
import pathlib
import struct

import numpy as np
import quant_study
from quant_study import F, log_softmax

ROOT = pathlib.Path(__file__).resolve().parent.parent
WINDOW = 512


def e4m3(x):
    size = np.minimum(np.abs(x), F(448))
    step = np.exp2(np.maximum(np.frexp(size)[1] - 1, -6) - 3).astype(F)
    return (np.sign(x) * np.rint(size / step) * step).astype(F)


def rows(x):
    scale = np.maximum(np.abs(x).max(-1, keepdims=True), F(1e-20)) / F(448)
    return e4m3(x / scale) * scale


def golden_ids(path):
    data = path.read_bytes()
    (size,) = struct.unpack("<I", data[8:12])
    return json.loads(data[12:12 + size])["token_ids"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("-o", "--out")
    args = parser.parse_args()
    quant_study.PROMPTS = [(ROOT / "tests/golden/perplexity.txt").read_text()]
    model = quant_study.Model(args.model)
    text = model.prompts[0]
    texts = [golden_ids(p) for p in sorted((ROOT / "tests/golden/smollm2").glob("*.golden"))]
    golden = sum(map(len, texts))
    texts += [text[i:i + WINDOW] for i in range(0, len(text), WINDOW)]
    model.ids = np.concatenate([np.asarray(t) for t in texts])
    model.ends = np.cumsum([len(t) for t in texts])
    model.positions = np.concatenate([np.arange(len(t)) for t in texts])
    scored = np.array([i for i in range(golden, len(model.ids) - 1) if i + 1 not in set(model.ends)])
    rounded = {name: rows(w) for name, w in model.weights.items() if w.ndim == 2}
    plain_attention, exact, table = model.attention, None, []
    everything, nothing = (lambda name: True), (lambda name: False)
    inside = lambda name: name != model.head
    but_first_o = lambda name: inside(name) and name != "blk.0.attn_output.weight"
    forms = [  # name, which weights, which inputs, the cache
        ("float32", nothing, nothing, False),
        ("cache", nothing, nothing, True),
        ("weights and inputs of the layers (--dtype fp8)", inside, inside, False),
        ("weights and inputs of the layers and of lm_head", everything, everything, False),
        ("weights and inputs of the layers, and the cache (--kv_cache_dtype fp8)", inside, inside, True),
        ("weights and inputs of the layers but the first layer's o", but_first_o, but_first_o, False),
    ]
    for name, which_w, which_x, cache in forms:
        model.attention = (lambda q, k, v: plain_attention(q, e4m3(k), e4m3(v))) if cache else plain_attention

        def linear(tensor, x):
            return (rows(x) if which_x(tensor) else x) @ (rounded if which_w(tensor) else model.weights)[tensor].T

        got = log_softmax(model.forward(linear))
        row = dict(form=name, perplexity=float(np.exp(-got[scored, model.ids[scored + 1]].mean(dtype=np.float64))))
        if exact is None:
            exact = got
        kl = np.concatenate([(np.exp(exact[i:i + 256]) * (exact[i:i + 256] - got[i:i + 256])).sum(-1, dtype=np.float64)
                             for i in range(0, golden, 256)])[:golden]
        row.update(kl_mean=float(kl.mean()), kl_median=float(np.median(kl)), kl_max=float(kl.max()),
                   perplexity_ratio=row["perplexity"] / (table[0]["perplexity"] if table else row["perplexity"]))
        table.append(row)
        print(f"KL {row['kl_mean']:.2e} (median {row['kl_median']:.1e})  perplexity {row['perplexity']:.3f} "
              f"x{row['perplexity_ratio']:.4f}  {name}", flush=True)
    if args.out:
        with open(args.out, "w") as f:
            json.dump(dict(command="tools/fp8_study.py <model.gguf> -o bench/results/fp8_study.json",
                           model=args.model.rsplit("/", 1)[-1], positions=golden, scored=len(scored), rows=table), f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()
