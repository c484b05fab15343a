#!/usr/bin/env python3
"""What rounding to e4m3 costs SmolLM2, part by part: mean KL against float32 over the token ids of tests/golden/smollm2 (the
positions that `ekiben check` and the model tests compare) and over tests/golden/perplexity.txt in windows of 512 tokens, and
that text's perplexity. Forms are those of `--dtype fp8` and `--kv_cache_dtype fp8`: a factor a row of a weight (an output
channel), a factor a token of a linear's input, keys and values with scale 1; sums in float32.

"compensated" rounds weights as src/ops/e4m3_rounding.h does, by the inputs that the text of src/model/calibration_text.h gives,
here with dense second moments. A single figure hangs on a few positions where a small change decides (one that turns moves the
mean by 3e-3), so `--seeds` repeats a form with inputs disturbed by a thousandth before they are rounded; rows hold each run.
`--linears` gives instead the KL of each linear rounded alone, inputs and weights apart, on short prompts. numpy, minutes on two
cores.

usage: fp8_study.py model.gguf [--seeds N] [--linears] [-o bench/results/fp8_study.json]     (pip: numpy gguf tokenizers)
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
KINDS = {"qkv": ("attn_q", "attn_k", "attn_v"), "o": ("attn_output",), "gate_up": ("ffn_gate", "ffn_up"), "down": ("ffn_down",)}


def e4m3(x):
    size = np.minimum(np.abs(x), F(448))
    step = np.exp2(np.maximum(np.frexp(size)[1] - 1, -6) - 3).astype(F)
    return (np.sign(x) * np.rint(size / step) * step).astype(F)


def rows(x):
    scale = np.maximum(np.abs(x).max(-1, keepdims=True), F(1e-20)) / F(448)
    return e4m3(x / scale) * scale


def compensated(w, x, shrink=0.5, ridge=0.02, block=64):
    """Rows of w rounded in order of the inputs' energy, each column moved first by what makes up for those before."""
    moments = (x.T @ x).astype(np.float64) / len(x)
    energy = np.diag(moments).copy()
    moments *= 1 - shrink
    np.fill_diagonal(moments, energy + ridge * energy.mean())
    order = np.argsort(-energy, kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(moments[np.ix_(order, order)])).T.astype(F)
    scale = np.maximum(np.abs(w).max(-1), F(1e-20)) / F(448)
    top, left, out = np.abs(w).argmax(-1), w[:, order].copy(), np.empty_like(w)
    for a in range(0, w.shape[1], block):
        b = min(a + block, w.shape[1])
        part, errors = left[:, a:b].T.copy(), np.empty((b - a, len(w)), F)
        for j in range(b - a):
            column = order[a + j]
            rounded = np.where(top == column, w[:, column], e4m3(part[j] / scale) * scale)
            out[:, column] = rounded
            errors[j] = (part[j] - rounded) / upper[a + j, a + j]
            part[j + 1:] -= upper[a + j, a + j + 1:b, None] * errors[j]
        left[:, b:] -= errors.T @ upper[a:b, b:]
    return out


def golden_ids(path):
    data = path.read_bytes()
    (size,) = struct.unpack("<I", data[8:12])
    return json.loads(data[12:12 + size])["token_ids"]


def feed(model, texts):
    model.ids = np.concatenate([np.asarray(t) for t in texts])
    model.ends = np.cumsum([len(t) for t in texts])
    model.positions = np.concatenate([np.arange(len(t)) for t in texts])


def names(model, layer, kind):
    return [f"blk.{layer % model.layers}.{part}.weight" for part in KINDS[kind]]


def mean_kl(exact, got, first, last):
    return np.concatenate([(np.exp(exact[i:i + 256]) * (exact[i:i + 256] - got[i:i + 256])).sum(-1, dtype=np.float64)
                           for i in range(first, last, 256)])[:last - first]


def study_forms(model, text, golden_texts, calibration, seeds):
    inputs = {}
    feed(model, [calibration])

    def record(tensor, x):
        inputs[tensor] = x
        return x @ model.weights[tensor].T

    model.forward(record)
    nearest, better = {}, {}
    for layer in range(model.layers):
        for kind in KINDS:
            for tensor in names(model, layer, kind):
                nearest[tensor] = rows(model.weights[tensor])
                better[tensor] = compensated(model.weights[tensor], inputs[tensor])
    nearest_head = {**nearest, model.head: rows(model.weights[model.head])}
    golden = sum(map(len, golden_texts))
    feed(model, golden_texts + [text[i:i + WINDOW] for i in range(0, len(text), WINDOW)])
    ends = set(model.ends)
    scored = np.array([i for i in range(golden, len(model.ids) - 1) if i + 1 not in ends])
    plain_attention = model.attention
    kept = lambda *which: {t for layer, kind in which for t in names(model, layer, kind)}
    first_o, last_down, last_gate_up = kept((0, "o")), kept((-1, "down")), kept((-1, "gate_up"))
    none, layers = set(), set(nearest)
    forms = [  # name, rounded weights, those kept exact, which inputs are rounded, the cache
        ("float32", {}, none, none, False),
        ("cache", {}, none, none, True),
        ("weights, nearest", nearest, none, none, False),
        ("weights, compensated", better, none, none, False),
        ("inputs", {}, none, layers, False),
        ("inputs but the first o's", {}, none, layers - first_o, False),
        ("weights, nearest, and inputs", nearest, none, layers, False),
        ("the same, and lm_head", nearest_head, none, layers | {model.head}, False),
        ("nearest, but the first o", nearest, first_o, layers, False),
        ("compensated", better, none, layers, False),
        ("compensated, but the first o and the last down", better, first_o | last_down, layers, False),
        ("compensated, but the first o and the last gate_up and down", better, first_o | last_gate_up | last_down, layers, False),
        ("compensated, but the first o and the last gate_up (--dtype fp8)", better, first_o | last_gate_up, layers, False),
        ("the same, and the cache (--kv_cache_dtype fp8)", better, first_o | last_gate_up, layers, True),
    ]
    exact, table = None, []
    for name, rounded, exact_ones, rounded_inputs, cache in forms:
        runs = []
        for seed in range(seeds if rounded_inputs else 1):
            random = np.random.default_rng(seed)

            def linear(tensor, x):
                keep = tensor in exact_ones
                if tensor in rounded_inputs and not keep:
                    x = rows(x * (1 + F(1e-3) * random.standard_normal(x.shape, dtype=F)) if seed else x)
                return x @ (model.weights[tensor] if keep else rounded.get(tensor, model.weights[tensor])).T

            model.attention = (lambda q, k, v: plain_attention(q, e4m3(k), e4m3(v))) if cache else plain_attention
            got = log_softmax(model.forward(linear))
            if exact is None:
                exact = got
            kl = mean_kl(exact, got, 0, len(model.ids))
            loss = lambda z: -z[scored, model.ids[scored + 1]].mean(dtype=np.float64)
            runs.append(dict(kl_mean=float(kl[:golden].mean()), kl_median=float(np.median(kl[:golden])),
                             kl_max=float(kl[:golden].max()), kl_text=float(kl[golden:].mean()),
                             perplexity_ratio=float(np.exp(loss(got) - loss(exact)))))
        row = dict(form=name, runs=runs, **{key: float(np.mean([r[key] for r in runs]))
                                            for key in ("kl_mean", "kl_text", "perplexity_ratio")})
        table.append(row)
        print(f"KL {row['kl_mean']:.2e}, of the text {row['kl_text']:.2e}  perplexity x{row['perplexity_ratio']:.4f}  {name}"
              f"  [{', '.join('{:.2e}'.format(r['kl_mean']) for r in runs)}]", flush=True)
    return dict(positions=golden, scored=len(scored), calibration_tokens=len(calibration),
                perplexity=float(np.exp(-exact[scored, model.ids[scored + 1]].mean(dtype=np.float64))), rows=table)


def study_linears(model, golden_texts):
    feed(model, [t[:96] for t in golden_texts[::4]])
    exact, table = log_softmax(model.forward(lambda tensor, x: x @ model.weights[tensor].T)), []
    for layer in range(model.layers):
        for kind in KINDS:
            which, found = set(names(model, layer, kind)), {}
            for part in ("inputs", "weights"):
                def linear(tensor, x):
                    if tensor not in which:
                        return x @ model.weights[tensor].T
                    return rows(x) @ model.weights[tensor].T if part == "inputs" else x @ rows(model.weights[tensor]).T

                found[part] = float(mean_kl(exact, log_softmax(model.forward(linear)), 0, len(model.ids)).mean())
            table.append(dict(linear=f"layers.{layer}.{kind}", **found))
            print(f"layers.{layer}.{kind:8} inputs {found['inputs']:.2e}  weights {found['weights']:.2e}", flush=True)
    return dict(positions=len(model.ids), linears=table)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--linears", action="store_true")
    parser.add_argument("-o", "--out")
    args = parser.parse_args()
    calibration = (ROOT / "src/model/calibration_text.h").read_text().split('R"(')[1].rsplit(')"', 1)[0]
    quant_study.PROMPTS = [(ROOT / "tests/golden/perplexity.txt").read_text(), calibration]
    model = quant_study.Model(args.model)
    text, calibration = model.prompts
    golden_texts = [golden_ids(p) for p in sorted((ROOT / "tests/golden/smollm2").glob("*.golden"))]
    found = study_linears(model, golden_texts) if args.linears else study_forms(model, text, golden_texts, calibration, args.seeds)
    if args.out:
        flags = " --linears" if args.linears else f" --seeds {args.seeds}"
        with open(args.out, "w") as f:
            json.dump(dict(command=f"tools/fp8_study.py <model.gguf>{flags} -o {args.out}",
                           model=args.model.rsplit("/", 1)[-1], **found), f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()
