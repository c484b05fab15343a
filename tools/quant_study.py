#!/usr/bin/env python3
"""How much a quantised linear may round: mean KL of each candidate against float32 logits of the same GGUF.

Runs a Llama forward in numpy (float32) over ten short prompts, once exact and once for each candidate, and writes the
table that ops/linear.h's packings and ops/quantize.h's spikes were chosen from. Rounding is simulated in
float32; the kernels' own KL over more positions is what `ekiben check` prints.

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
PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
F = np.float32


class Model:
    def __init__(self, path):
        reader = GGUFReader(path)
        self.weights = {t.name: np.ascontiguousarray(dequantize(t.data, t.tensor_type), dtype=F) for t in reader.tensors}
        meta = lambda key: reader.fields["llama." + key].contents()
        self.layers, self.heads, self.kv_heads = meta("block_count"), meta("attention.head_count"), meta("attention.head_count_kv")
        self.dim, self.theta = meta("rope.dimension_count"), float(meta("rope.freq_base"))
        self.eps = F(meta("attention.layer_norm_rms_epsilon"))
        self.head = "output.weight" if "output.weight" in self.weights else "token_embd.weight"
        field = lambda key: reader.fields["tokenizer.ggml." + key].contents()
        self.prompts = tokenize(field("tokens"), field("merges"))
        self.ids = np.concatenate(self.prompts)
        self.ends = np.cumsum([len(p) for p in self.prompts])
        self.positions = np.concatenate([np.arange(len(p)) for p in self.prompts])

    def forward(self, linear):
        """Logits of every position of every prompt. linear(name, x) -> x W^T."""
        n, w = len(self.ids), self.weights
        angle = self.positions[:, None] * self.theta ** (-np.arange(0, self.dim, 2) / self.dim)
        cos, sin = np.cos(angle).astype(F)[:, None], np.sin(angle).astype(F)[:, None]

        def rope(v):
            even, odd, y = v[..., 0::2], v[..., 1::2], np.empty_like(v)
            y[..., 0::2], y[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
            return y

        rms = lambda v, g: v / np.sqrt((v * v).mean(-1, keepdims=True) + self.eps) * g
        x = w["token_embd.weight"][self.ids]
        for i in range(self.layers):
            p = f"blk.{i}."
            h = rms(x, w[p + "attn_norm.weight"])
            q = rope(linear(p + "attn_q.weight", h).reshape(n, self.heads, self.dim))
            k = rope(linear(p + "attn_k.weight", h).reshape(n, self.kv_heads, self.dim))
            v = linear(p + "attn_v.weight", h).reshape(n, self.kv_heads, self.dim)
            x = x + linear(p + "attn_output.weight", self.attention(q, k, v).reshape(n, -1))
            h = rms(x, w[p + "ffn_norm.weight"])
            g = linear(p + "ffn_gate.weight", h)
            x = x + linear(p + "ffn_down.weight", g / (1 + np.exp(-g)) * linear(p + "ffn_up.weight", h))
        return linear(self.head, rms(x, w["output_norm.weight"]))

    def attention(self, q, k, v):
        out, begin, group = np.empty_like(q), 0, self.heads // self.kv_heads
        for end in self.ends:
            mask = np.triu(np.full((end - begin, end - begin), -np.inf, F), 1)
            for h in range(self.heads):
                s = q[begin:end, h] @ k[begin:end, h // group].T / F(self.dim**0.5) + mask
                s = np.exp(s - s.max(-1, keepdims=True))
                out[begin:end, h] = s / s.sum(-1, keepdims=True) @ v[begin:end, h // group]
            begin = end
        return out


def tokenize(vocabulary, merges):
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    t = Tokenizer(models.BPE(vocab={v: i for i, v in enumerate(vocabulary)}, merges=[tuple(m.split(" ")) for m in merges]))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    t.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    return [t.encode(p).ids for p in PROMPTS]


def quantise(x, group):
    """int8 with one scale per `group` values of a row (0: the row). Returns (rounded, scales), grouped."""
    g = x.reshape(x.shape[0], -1, group or x.shape[1])
    scale = np.abs(g).max(-1, keepdims=True) / F(127)
    return np.rint(g / np.where(scale == 0, F(1), scale)) * scale, scale


class Activations:
    """A rule for activations; counts the groups that took a second record or the values that left as spikes."""

    def __init__(self, group, ratio=0, most=0, spikes=0, part=""):
        self.group, self.ratio, self.most, self.spikes, self.part = group, ratio, most, spikes, part
        self.extra = self.groups = 0

    def __call__(self, name, x):
        if self.part not in name:
            return x
        rms, spike = np.sqrt((x * x).mean(-1, keepdims=True)), F(0)
        if self.spikes:  # values beyond the ratio leave and are multiplied exactly
            leaves = np.abs(x) > (self.spikes * rms).astype(F)
            spike, x = np.where(leaves, x, F(0)), np.where(leaves, F(0), x)
            self.extra += int((spike != 0).sum())
        y, scale = quantise(x, self.group)
        self.groups += scale.size
        if self.ratio or self.most:  # what is left of some groups is quantised again
            if self.most:
                order = np.argsort(-scale[..., 0], axis=1)[:, : self.most]
                again = np.zeros(scale.shape[:2], bool)
                np.put_along_axis(again, order, True, 1)
            else:
                again = scale[..., 0] * 127 > self.ratio * rms
            self.extra += int(again.sum())
            rest = (x.reshape(y.shape) - y).reshape(x.shape)
            y = y + quantise(rest, self.group)[0] * again[..., None]
        return (y.reshape(x.shape) + spike).astype(F)


def bf16(x):
    bits = np.ascontiguousarray(x, F).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(F)


def candidates():
    """(name, weights of linears, activations of linears, weights of the head, activations of the head)"""
    exact_x, exact_w = lambda name, x: x, lambda w: w
    channel, by64 = (lambda w: quantise(w, 0)[0].reshape(w.shape)), (lambda w: quantise(w, 64)[0].reshape(w.shape))
    bf16_x = lambda name, x: bf16(x)
    rows = [("q4_1, x bf16, head q8_0 x bf16", exact_w, bf16_x, exact_w, bf16_x)]
    for group in (0, 192, 96, 64, 32):
        rows.append((f"q4_1, x int8/{group or 'token'}, head exact", exact_w, Activations(group), exact_w, exact_x))
    for part in PARTS:
        rows.append((f"q4_1, only {part} x int8/64", exact_w, Activations(64, part=part), exact_w, exact_x))
    for most in (1, 2, 3):
        rows.append((f"q4_1, x int8/64 + second record in the {most} largest groups, head exact", exact_w,
                     Activations(64, most=most), exact_w, exact_x))
    for ratio in (4, 6, 8, 10, 12, 16):
        rows.append((f"q4_1, x int8/64 + second record over {ratio} rms, head exact", exact_w, Activations(64, ratio=ratio),
                     exact_w, exact_x))
    for ratio in (4, 5, 6, 8, 10):
        rows.append((f"q4_1, x int8/64 + exact spikes over {ratio} rms, head exact", exact_w, Activations(64, spikes=ratio),
                     exact_w, exact_x))
    for ratio in (4, 5, 6):
        rows.append((f"q4_1, x int8/192 + exact spikes over {ratio} rms, head exact", exact_w,
                     Activations(192, spikes=ratio), exact_w, exact_x))
    rows.append(("all exact, head int8/channel x f32", exact_w, exact_x, channel, exact_x))
    rows.append(("all exact, head int8/64 x f32", exact_w, exact_x, by64, exact_x))
    rows.append(("all exact, head q8_0 x int8/token", exact_w, exact_x, exact_w, Activations(0)))
    rows.append(("all exact, head q8_0 x int8/64 + second record over 10 rms", exact_w, exact_x, exact_w, Activations(64, 10)))
    rows.append(("int8/channel from q4_1, x f32, head exact", channel, exact_x, exact_w, exact_x))
    rows.append(("int8/64 from q4_1, x f32, head exact", by64, exact_x, exact_w, exact_x))
    rows.append(("q4_1, x int8/64 + second record over 8 rms, head int8/64 x the same", exact_w, Activations(64, 8), by64,
                 Activations(64, 8)))
    for ratio in (6, 8):
        rows.append((f"CHOSEN FORM, ratio {ratio}: q4_1, x int8/64 + exact spikes, head int8/64 x the same", exact_w,
                     Activations(64, spikes=ratio), by64, Activations(64, spikes=ratio)))
    return rows


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True, dtype=np.float64)).astype(F)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("-o", "--out")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    model = Model(args.model)
    exact = log_softmax(model.forward(lambda name, x: x @ model.weights[name].T))
    probability, rows = np.exp(exact), []
    for name, rule_w, rule_x, head_w, head_x in candidates():
        if args.only not in name:
            continue
        begin = time.time()

        def linear(tensor, x):
            w, a = (head_w, head_x) if tensor == model.head else (rule_w, rule_x)
            return a(tensor, x) @ w(model.weights[tensor]).T

        got = log_softmax(model.forward(linear))
        kl = (probability * (exact - got)).sum(-1, dtype=np.float64)
        row = dict(candidate=name, kl_mean=float(kl.mean()), kl_p99=float(np.percentile(kl, 99)), kl_max=float(kl.max()),
                   top1=float((exact.argmax(-1) == got.argmax(-1)).mean()))
        if isinstance(rule_x, Activations) and rule_x.extra:
            row["extra_per_group"] = rule_x.extra / rule_x.groups
        rows.append(row)
        print(f"{row['kl_mean']:.2e} p99 {row['kl_p99']:.2e} top1 {row['top1']:.3f} extra {row.get('extra_per_group', 0):.3f}"
              f"  {name} ({time.time() - begin:.1f} s)", flush=True)
    if args.out:
        with open(args.out, "w") as f:
            json.dump(dict(command="tools/quant_study.py <model.gguf> -o bench/results/quant_study.json",
                           model=args.model.rsplit("/", 1)[-1], prompts=len(PROMPTS), positions=len(model.ids), rows=rows), f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()
