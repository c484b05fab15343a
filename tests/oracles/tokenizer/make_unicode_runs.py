#!/usr/bin/env python3
"""Writes src/text/unicode_runs.inc: the character classes that the pre-tokenizer patterns use.

The classes are asked of the regular-expression engine inside Hugging Face `tokenizers` itself, one pattern over every
code point, so that our tables have its Unicode version and not this machine's. tiktoken's engine gave the same sets
(tokenizers 0.23.3, tiktoken 0.14.0).

    python make_unicode_runs.py > ../../../src/text/unicode_runs.inc
"""
import tokenizers
from tokenizers import AddedToken, Regex, models, pre_tokenizers

# One bit each; the same order as enum CharClass in src/text/unicode.h. kWord, the last, is asked otherwise.
CLASSES = [r"\p{L}", r"\p{N}", r"\s", r"\p{M}", r"[\p{P}\p{S}]", r"[\p{Lu}\p{Lt}]", r"\p{Ll}"]
STEP = 20_000
WORD_STEP = 500  # the reference takes quadratic time over a text of many added tokens


def word_characters(code_points):
    """Those that keep a single_word token from being found behind them: another engine's \\w."""
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={"x": 0}, merges=[], unk_token="x"))
    tokenizer.add_tokens([AddedToken("one", single_word=True, normalized=False)])
    token = tokenizer.token_to_id("one")
    out = []
    for start in range(0, len(code_points), WORD_STEP):
        part = code_points[start : start + WORD_STEP]
        encoding = tokenizer.encode("".join(f"\n{chr(c)}one" for c in part))
        found = {begin // 5 for id, (begin, end) in zip(encoding.ids, encoding.offsets) if id == token}
        out += [c for i, c in enumerate(part) if i not in found]
    return out


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
    for c in word_characters(code_points):
        flags[c] |= 1 << len(CLASSES)
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
