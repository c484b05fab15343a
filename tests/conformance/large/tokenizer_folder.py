#!/usr/bin/env python3
"""Writes the test model's tokenizer as a Hugging Face folder, for clients that count tokens with a local tokenizer.

usage (in the environment of tests/oracles/tokenizer): tokenizer_folder.py MODEL.gguf FOLDER

It is the one that our tokenizer is held against: what transformers makes of the GGUF itself splits digits otherwise."""
import json
import pathlib
import sys

import gguf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "oracles" / "tokenizer"))
import references  # noqa: E402


def main():
    model, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    reference = references.smollm2(folder, model)
    pathlib.Path(reference.path).rename(folder / "tokenizer.json")
    fields = gguf.GGUFReader(model).fields
    token = lambda key: fields["tokenizer.ggml.tokens"].contents(int(fields[f"tokenizer.ggml.{key}_token_id"].contents()))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": token("bos"), "eos_token": token("eos"),
        "model_max_length": int(fields["llama.context_length"].contents()),
        "chat_template": fields["tokenizer.chat_template"].contents()}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))


main()
