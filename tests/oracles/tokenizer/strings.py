"""Seeded random strings that look for the corners of a tokenizer."""
import random
import unicodedata

SPECIALS = """<|im_start|> <|im_end|> <|endoftext|> <|begin_of_text|> <|eot_id|> <|start_header_id|> <|end_header_id|>
<|eom_id|> <|python_tag|> <|reserved_special_token_7|> <s> </s> <unk> <pad> [INST] [/INST] [AVAILABLE_TOOLS]
[/AVAILABLE_TOOLS] [TOOL_CALLS] [IMG] [SYSTEM_PROMPT] [control_8] <SPECIAL_20> <0x0A> <0xE2> <|extra_3|> <jupyter_code>
<file_sep> <repo_name> <think> </think> <tool_call> <|fim_prefix|> <|header_start|> <|eot|> <｜begin▁of▁sentence｜>
<｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜> <｜tool▁calls▁begin｜> <|EOT|> <｜fim▁hole｜> <｜▁pad▁｜>""".split()
WORDS = """the of and to in is that it was for on are with as his they at be this have from I'm don't you've we'll he'd
it's they're Hello world tokenizer engine Straße naïve café coöperate Ελλάδα Москва שלום مرحبا हिन्दी ภาษาไทย 日本語 中文 한국어
int main() return std::vector<int>{1,2,3}; def f(x): if x == 3.14159: print("hi\\n") https://example.org/a?b=c&d=e#f
camelCaseWord SCREAMING_SNAKE HTTPServer2Go x86_64 C++20 e.g. U.S.A. $1,234.56 50% 2026-11-23T06:20:32Z""".split()
CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'Ve", "'M", "'lL", "'D", "'ſ", "’s", "'", "''",
                "'ss", "'rе", "'l", "'v", "'r"]
SPACES = [" ", "  ", "\t", "\n", "\r", "\r\n", "\n\n", "\v", "\f", "\x85", "\xa0", "\u1680", "\u2000", "\u2007", "\u200a",
          "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\x1c", "\x1f", "\u180e", "\u200b", "\ufeff", "\u2060", "\u2581"]
MARKS = [chr(c) for c in (0x300, 0x301, 0x308, 0x327, 0x323, 0x345, 0x338, 0x483, 0x5b0, 0x64b, 0x93c, 0x94d, 0xe31, 0xe48, 0x1ab0,
                          0x1dc0, 0x20d0, 0x20e3, 0x3099, 0x309a, 0xfe0f, 0xfe20, 0xf71, 0xf72, 0xf73, 0x344, 0x1d165)]
EMOJI = ["😀", "🦙", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇯🇵", "🇺", "❤️", "1️⃣", "👩🏿‍🚀", "\u200d", "\ufe0f", "🫠", "✈︎"]
DIGITS = list("0123456789") + ["²", "¼", "Ⅵ", "〇", "٣", "५", "𝟘", "①", "㊿", "༳", "៩"]
PUNCT = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + ["…", "—", "“", "”", "¿", "。", "、", "「", "€", "№", "×", "→", "■", "⁄", "ﷺ"]
HAN = (0x4E00, 0x9FFF)
COMPOSE = ["e\u0301", "A\u030a", "\u212b", "\u1100\u1161\u11a8", "\uac00\u11a8", "\u0958", "\ufb1d", "\u1e9b\u0323", "\uf900",
           "か\u3099", "q\u0307\u0323", "\u2126", "o\u0308\u0304", "\U0001d15e"]
LONG_RUNS = ["a", " ", "\n", "0", "!", "é", "中", "=", "ab", "\u0301", "🦙", " \n", "\t", "-_", "A", "aA", "'s", "\x00"]


def any_char(rng):
    while True:
        kind = rng.random()
        if kind < 0.3:
            c = rng.randrange(0x20, 0x800)
        elif kind < 0.8:
            c = rng.randrange(0x10000)
        elif kind < 0.95:
            c = rng.randrange(0x10000, 0x20000)
        else:
            c = rng.randrange(0x110000)
        if not 0xD800 <= c <= 0xDFFF:
            return chr(c)


def letter_of_script(rng):
    start, end = rng.choice([(0x41, 0x7B), (0xC0, 0x250), (0x370, 0x400), (0x400, 0x530), (0x5D0, 0x5EB), (0x620, 0x6D4),
                             (0x900, 0x980), (0x980, 0xA00), (0xE00, 0xE80), (0x10A0, 0x1100), (0x1100, 0x1200),
                             (0x13A0, 0x1400), (0x1E00, 0x2000), (0x2C00, 0x2C60), (0x3040, 0x3100), HAN, (0xAC00, 0xD7A4),
                             (0xF900, 0xFB00), (0xFF00, 0xFFF0), (0x10400, 0x10450), (0x1D400, 0x1D800), (0x1E900, 0x1E960)])
    return chr(rng.randrange(start, end))


def make_string(rng):
    kind = rng.randrange(16)
    n = rng.randrange(1, 40)
    pick = rng.choice
    if kind == 0:
        return "".join(chr(rng.randrange(0x20, 0x7F)) for _ in range(n))
    if kind == 1:
        return "".join(any_char(rng) for _ in range(n))
    if kind == 2:
        return "".join(pick(MARKS) if rng.random() < 0.4 else letter_of_script(rng) for _ in range(n))
    if kind == 3:
        return "".join(chr(rng.randrange(*HAN)) if rng.random() < 0.6 else pick(["あ", "ア", "ー", "。", "、", "1", "a", " ", "゛", "・", "\u3040", "\u9fa6"]) for _ in range(n))
    if kind == 4:
        return "".join(pick(EMOJI) if rng.random() < 0.7 else pick(WORDS + SPACES) for _ in range(n // 2))
    if kind == 5:
        return "".join(pick(SPACES) if rng.random() < 0.7 else pick(["a", "1", "!", "é", "中"]) for _ in range(n))
    if kind == 6:
        return "".join(pick(DIGITS) if rng.random() < 0.7 else pick([" ", ",", ".", "a", "-", "\n"]) for _ in range(n))
    if kind == 7:
        return "".join(pick(["\r\n", "\n", "\r", " ", "x", "1", ".", "\t", "/"]) for _ in range(n))
    if kind == 8:
        return "".join(pick(WORDS + ["O", "I", "a", "x1", "é"]) + pick(CONTRACTIONS) + pick(["", " ", "x", "\n"]) for _ in range(n // 3 + 1))
    if kind == 9:
        return "".join(pick(SPECIALS) if rng.random() < 0.4 else pick(WORDS + SPACES + list("<|>[]｜▁")) for _ in range(n // 2 + 1))
    if kind == 10:
        return "".join(pick(SPACES[-8:] + ["\ufffd", "\ufffe", "\uffff", "\x00", "\x7f", "\x80", "\ue000", "\U0010ffff", "\u0378"] + WORDS[:20]) for _ in range(n))
    if kind == 11:
        return "".join(pick(COMPOSE) if rng.random() < 0.5 else pick(WORDS + MARKS) for _ in range(n // 2 + 1))
    if kind == 12:
        return "".join(pick(PUNCT) if rng.random() < 0.7 else pick(WORDS + SPACES) for _ in range(n))
    if kind == 13:
        return pick(LONG_RUNS) * rng.randrange(1, 300) + pick(["", "a", " ", "\n", "1"]) + pick(LONG_RUNS) * rng.randrange(0, 30)
    if kind == 14:
        return "".join(letter_of_script(rng) if rng.random() < 0.8 else pick([" ", "'s", "\u0301", "-", "ǅ", "ʰ", "ª"]) for _ in range(n))
    return " ".join(pick(WORDS) for _ in range(n)) + pick(["", " ", "\n", ".", " \n"])


def make_strings(count, seed):
    rng = random.Random(seed)
    return ["", " ", "\n", "a"] + [make_string(rng) for _ in range(count - 4)]


def assigned(text):
    """Without the characters that this Python's Unicode does not know: a regex engine of another version may."""
    return "".join(c for c in text if unicodedata.category(c) != "Cn")
