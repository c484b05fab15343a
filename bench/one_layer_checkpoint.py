#!/usr/bin/env python3
"""A Llama checkpoint of one layer and random weights around a real tokenizer: for `ekiben bench --device fake`, which
computes nothing but needs a tokenizer and a vocabulary (bench/results/cpu16_postprocessing.json).

usage: bench/one_layer_checkpoint.py FOLDER      FOLDER holds tokenizer.json (and tokenizer_config.json, if there is one)
"""
import json
import pathlib
import random
import struct
import sys

HIDDEN, INTERMEDIATE, HEAD = 32, 64, 32


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = list(tokenizer["model"]["vocab"].values()) + [token["id"] for token in tokenizer["added_tokens"]]
    vocabulary = (max(ids) + 64) // 64 * 64
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
              "intermediate_size": INTERMEDIATE, "num_hidden_layers": 1, "num_attention_heads": 1,
              "num_key_value_heads": 1, "head_dim": HEAD, "vocab_size": vocabulary, "max_position_embeddings": 4096,
              "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
              "bos_token_id": 0, "eos_token_id": 1, "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": (vocabulary, HIDDEN), "model.norm.weight": (HIDDEN,),
              layer + "input_layernorm.weight": (HIDDEN,), layer + "post_attention_layernorm.weight": (HIDDEN,),
              layer + "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN), layer + "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
              layer + "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE)}
    shapes |= {f"{layer}self_attn.{name}_proj.weight": (HEAD, HIDDEN) for name in "qkvo"}
    rng, header, data = random.Random(1), {}, bytearray()
    for name, shape in shapes.items():
        values = bytearray(rng.randbytes(2 * shape[0] * (shape[1] if len(shape) > 1 else 1)))
        values[1::2] = bytes(byte & 0x80 | 0x3C for byte in values[1::2])  # bf16 of 0.008 to 0.03, either sign
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


if __name__ == "__main__":
    main()
