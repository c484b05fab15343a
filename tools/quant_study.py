#!/usr/bin/env python3
"""How much a quantised linear layer may round: mean KL of each candidate against float32 logits of the same GGUF.

Runs a Llama forward in numpy (float32) over a few natural prompts, once exact and once for each candidate, and writes
the table that ops/linear.h's packings were chosen from. Rounding is simulated in float32: a product of integers below
2^24 and its sum are what the kernels compute exactly.

usage: quant_study.py model.gguf [-o bench/results/quant_study.json] [--only SUBSTRING]     (pip: numpy gguf tokenizers)
"""
import argparse
import json
import sys
import time

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

PROMPTS = [
    "The capital of France is Paris, a city on the river Seine that has been the centre of the country's politics and arts for centuries.",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\nGravity is a fundamental force that attracts objects with mass toward each other.",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n\nprint(fibonacci(10))\n",
    "In 1969, Apollo 11 landed on the Moon. Neil Armstrong and Buzz Aldrin spent about two and a half hours outside the spacecraft.",
    "Photosynthesis is the process by which green plants use sunlight to make food from carbon dioxide and water.",
    "Q: If a train travels 60 miles in 1.5 hours, what is its average speed?\nA: The average speed is 60 / 1.5 = 40 miles per hour.",
    "Once upon a time, in a small village at the edge of a great forest, there lived an old clockmaker who never slept.",
    "<|im_start|>user\nWrite a haiku about autumn.<|im_end|>\n<|im_start|>assistant\nLeaves drift on the wind,\nGolden light through misty trees,\nAutumn whispers soft.<|im_end|>\n",
    "Dear Sir or Madam, I am writing to complain about the service that I received at your restaurant last Saturday evening.",
    "SELECT name, COUNT(*) AS orders FROM customers JOIN orders ON customers.id = orders.customer_id GROUP BY name ORDER BY orders DESC;",
]
F = np.float32


def load(path):
    reader = GGUFReader(path)
    tensors = {t.name: t for t in reader.tensors}
    weights = {n: np.ascontiguousarray(dequantize(t.data, t.tensor_type), dtype=F) for n, t in tensors.items()}
    # The scale and minimum of every Q4_1 block, for rules that keep them.
    blocks = {}
    for name, t in tensors.items():
        if t.tensor_type.name == "Q4_1":
            raw = np.ascontiguousarray(t.data).reshape(weights[name].shape[0], -1, 20)
            pair = raw[..., :4].copy().view(np.float16).astype(F)
            blocks[name] = (pair[..., 0], pair[..., 1])
    meta = lambda key: reader.fields["llama." + key].contents()
    shape = dict(layers=meta("block_count"), heads=meta("attention.head_count"), kv=meta("attention.head_count_kv"),
                 dim=meta("rope.dimension_count"), theta=float(meta("rope.freq_base")),
                 eps=F(meta("attention.layer_norm_rms_epsilon")))
    vocabulary = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    return weights, blocks, shape, vocabulary, merges


def tokenize(vocabulary, merges):
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
    t = Tokenizer(models.BPE(vocab={v: i for i, v in enumerate(vocabulary)}, merges=[tuple(m.split(" ")) for m in merges]))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    t.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    return [t.encode(p).ids for p in PROMPTS]


# ---- rounding rules ------------------------------------------------------------------------------------------------
def round_activations(x, group):
    """int8, one scale per `group` values of a token (0: per token)."""
    rows, k = x.shape
    g = x.reshape(rows, -1, group if group else k)
    scale = np.abs(g).max(-1, keepdims=True) / F(127)
    q = np.rint(g / np.where(scale == 0, F(1), scale))
    return (q * scale).reshape(rows, k).astype(F)


def round_channel(w, bits=8, group=0):
    rows, k = w.shape
    top = F(2 ** (bits - 1) - 1)
    g = w.reshape(rows, -1, group if group else k)
    scale = np.abs(g).max(-1, keepdims=True) / top
    return (np.rint(g / np.where(scale == 0, F(1), scale)) * scale).reshape(rows, k).astype(F)


def bf16(x):
    bits = x.astype(F).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(F)


# ---- forward -------------------------------------------------------------------------------------------------------
def forward(ids, weights, shape, linear):
    """Logits of every position. linear(name, x) -> x W^T."""
    heads, kv, dim, eps = shape["heads"], shape["kv"], shape["dim"], shape["eps"]
    n = len(ids)
    angle = np.arange(n)[:, None] * shape["theta"] ** (-np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angle).astype(F)[:, None], np.sin(angle).astype(F)[:, None]

    def rope(v):
        even, odd, y = v[..., 0::2], v[..., 1::2], np.empty_like(v)
        y[..., 0::2], y[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
        return y

    rms = lambda v, w: v / np.sqrt((v * v).mean(-1, keepdims=True) + eps) * w
    mask = np.triu(np.full((n, n), -np.inf, F), 1)
    x = weights["token_embd.weight"][ids]
    for i in range(shape["layers"]):
        p = f"blk.{i}."
        h = rms(x, weights[p + "attn_norm.weight"])
        q = rope(linear(p + "attn_q.weight", h).reshape(n, heads, dim))
        k = rope(linear(p + "attn_k.weight", h).reshape(n, kv, dim))
        v = linear(p + "attn_v.weight", h).reshape(n, kv, dim)
        k, v = np.repeat(k, heads // kv, 1), np.repeat(v, heads // kv, 1)
        s = np.einsum("thd,shd->hts", q, k) / F(dim**0.5) + mask
        s = np.exp(s - s.max(-1, keepdims=True))
        s = s / s.sum(-1, keepdims=True)
        x = x + linear(p + "attn_output.weight", np.einsum("hts,shd->thd", s, v).reshape(n, heads * dim))
        h = rms(x, weights[p + "ffn_norm.weight"])
        g = linear(p + "ffn_gate.weight", h)
        x = x + linear(p + "ffn_down.weight", g / (1 + np.exp(-g)) * linear(p + "ffn_up.weight", h))
    head = "output.weight" if "output.weight" in weights else "token_embd.weight"
    return linear(head, rms(x, weights["output_norm.weight"]))


def log_softmax(z):
    z = z.astype(np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def candidates():
    """name -> (linear weights' rule, linear activations' rule, head weights' rule, head activations' rule).
    Rules are functions; activation rules take (tensor name, x)."""
    keep_w = lambda name, w, b: w
    keep_x = lambda name, x: x
    act = lambda group: lambda name, x: round_activations(x, group if group and x.shape[1] % group == 0 else 0)
    only = lambda part, group: lambda name, x: round_activations(x, group) if part in name else x
    channel = lambda name, w, b: round_channel(w)
    table = {}
    # What each part costs alone.
    for g in (32, 64):
        table[f"q4_1 exact, x int8/{g}, head exact x f32"] = (keep_w, act(g), keep_w, keep_x)
        table[f"q4_1 exact, x int8/{g}, head int8/channel x int8/{g}"] = (keep_w, act(g), channel, act(g))
        table[f"q4_1 exact, x int8/{g}, head q8_0 x int8/{g}"] = (keep_w, act(g), keep_w, act(g))
        table[f"int8/channel from q4_1, x int8/{g}, head int8/channel x int8/{g}"] = (channel, act(g), channel, act(g))
    table["q4_1 exact, x f32, head int8/channel x f32"] = (keep_w, keep_x, channel, keep_x)
    table["q4_1 exact, x bf16, head q8_0 x bf16"] = (keep_w, lambda n, x: bf16(x), keep_w, lambda n, x: bf16(x))
    table["int8/channel from q4_1, x f32, head exact x f32"] = (channel, keep_x, keep_w, keep_x)
    table["int8/64 from q4_1, x f32, head exact x f32"] = (lambda n, w, b: round_channel(w, 8, 64), keep_x, keep_w, keep_x)
    table["q4_1 exact, x f32, head exact x int8/token"] = (keep_w, keep_x, keep_w, act(0))
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        table[f"q4_1 exact, only {part} x int8/token"] = (keep_w, only(part, 0), keep_w, keep_x)
    for g in (0, 96, 192):
        table[f"q4_1 exact, x int8/{g or 'token'}, head exact x f32"] = (keep_w, act(g), keep_w, keep_x)
    return table


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("-o", "--out")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    weights, blocks, shape, vocabulary, merges = load(args.model)
    prompts = tokenize(vocabulary, merges)
    tokens = sum(map(len, prompts))
    print(f"{len(prompts)} prompts, {tokens} tokens", file=sys.stderr)
    exact = [log_softmax(forward(ids, weights, shape, lambda n, x: x @ weights[n].T)) for ids in prompts]
    head = "output.weight" if "output.weight" in weights else "token_embd.weight"
    rows = []
    for name, (rule_w, rule_x, head_w, head_x) in candidates().items():
        if args.only not in name:
            continue
        begin, cache = time.time(), {}

        def linear(n, x):
            is_head = n == head
            if n not in cache:
                cache[n] = (head_w if is_head else rule_w)(n, weights[n], blocks.get(n))
            return (head_x if is_head else rule_x)(n, x) @ cache[n].T

        kl, top, worst = [], 0, 0.0
        for ids, p in zip(prompts, exact):
            q = log_softmax(forward(ids, weights, shape, linear))
            row = (np.exp(p) * (p - q)).sum(-1)
            kl.append(row)
            top += int((p.argmax(-1) == q.argmax(-1)).sum())
        kl = np.concatenate(kl)
        rows.append(dict(candidate=name, kl_mean=float(kl.mean()), kl_p99=float(np.percentile(kl, 99)), kl_max=float(kl.max()),
                         top1=top / tokens))
        print(f"{kl.mean():.2e} p99 {np.percentile(kl, 99):.2e} max {kl.max():.2e} top1 {top / tokens:.3f}  {name}  ({time.time() - begin:.1f} s)", flush=True)
    if args.out:
        with open(args.out, "w") as f:
            json.dump(dict(command=" ".join(sys.argv), prompts=len(prompts), tokens=tokens, rows=rows), f, indent=1)


if __name__ == "__main__":
    main()
