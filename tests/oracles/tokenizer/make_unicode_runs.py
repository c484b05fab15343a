#!/usr/bin/env python3
"""Writes src/text/unicode_runs.inc: the character classes that the pre-tokenizer patterns use.

The classes are asked of the regular-expression engine inside Hugging Face `tokenizers` itself, one pattern over every
code point, so that our tables have its Unicode version and not this machine's. tiktoken's engine gave the same sets
(tokenizers 0.23.3, tiktoken 0.14.0).

    python make_unicode_runs.py > ../../../src/text/unicode_runs.inc
"""
import tokenizers
from tokenizers import Regex, pre_tokenizers

# One bit each; the same order as enum CharClass in src/text/unicode.h.
CLASSES = [r"\p{L}", r"\p{N}", r"\s", r"\p{M}", r"[\p{P}\p{S}]", r"[\p{Lu}\p{Lt}]", r"\p{Ll}", r"\w"]
STEP = 20_000


def main():
    code_points = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    text = "".join(map(chr, code_points))
    flags = bytearray(0x110000)
    for bit, pattern in enumerate(CLASSES):
        split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)  # keeps what matches
        for start in range(0, len(text), STEP):
            for word, _ in split.pre_tokenize_str(text[start : start + STEP]):
                for char in word:
                    flags[ord(char)] |= 1 << bit
    runs = [(0, flags[0])]
    for c in range(1, 0x110000):
        if flags[c] != runs[-1][1]:
            runs.append((c, flags[c]))
    print(f"// Made by tests/oracles/tokenizer/make_unicode_runs.py from tokenizers {tokenizers.__version__}: do not edit.")
    print(f"// {len(runs)} runs of code points of equal class: first << 8 | class bits.")
    line = ""
    for first, bits in runs:
        item = f"0x{first << 8 | bits:x},"
        if len(line) + len(item) > 120:
            print(line)
            line = ""
        line += item
    print(line)


main()
