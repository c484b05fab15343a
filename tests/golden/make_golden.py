#!/usr/bin/env python3
"""Makes the golden files in this folder from Hugging Face transformers, float32, on the CPU.

They are committed, so tests need neither torch nor this script. To make them again (3 GB of wheels, ~5 minutes):
  python3 -m venv venv && venv/bin/pip install torch transformers gguf accelerate safetensors
  venv/bin/python tests/golden/make_golden.py --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf
  venv/bin/python tests/golden/make_golden.py --tiny

A .golden file (read by src/model/golden_file.h), little-endian:
  8 bytes   "EKGOLD1\\n"
  u32       bytes of the JSON header
  JSON      {"token_ids": [..], "prompt_tokens": P, "vocab_size": V, "top": T, "full_positions": [..]}, space-padded so
            that what follows is 8-byte aligned
  f32 [N]     log(sum(exp(logits))) at every position; N = number of token_ids
  i32 [N, T]  ids of the T highest logits at every position, highest first
  f32 [N, T]  those logits
  f32 [F, V]  all logits at the full positions
token_ids is a prompt of P tokens followed by what greedy decoding continued it with; logits are those of one forward
pass over all of them (position i predicts token i + 1), so they also prove the greedy tokens.
"""
import argparse
import json
import pathlib
import struct

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
TOP = 64

# English, code, arithmetic, lists, chat in ChatML, other scripts; 1 token to about 300. Text becomes ids here, with the
# right pre-tokenizer; the tests use ids only.
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village at the foot of a mountain, there lived",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "1, 2, 3, 5, 8, 13, 21,",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a haiku about rain.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nList three uses for a paper clip.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nTranslate to French: good morning, my friend.<|im_end|>\n<|im_start|>assistant\n",
    "The",
    "Water boils at 100 degrees Celsius at sea level. At higher altitudes,",
    "SELECT name, COUNT(*) FROM orders WHERE price > 10 GROUP BY",
    "Dear Sir or Madam,\n\nI am writing to",
    "Die Hauptstadt von Deutschland ist",
    "El perro corre por el parque mientras",
    "#include <stdio.h>\n\nint main(void) {\n",
    "Q: If a train travels 60 miles in 1.5 hours, what is its average speed?\nA:",
    "{\"name\": \"Alice\", \"age\": 30, \"city\":",
    "Photosynthesis is the process by which green plants and some other organisms use sunlight to synthesize foods from "
    "carbon dioxide and water. Photosynthesis in plants generally involves the green pigment chlorophyll and generates "
    "oxygen as a byproduct. The light-dependent reactions take place in the thylakoid membranes, where chlorophyll "
    "absorbs photons and passes energized electrons down a chain of carriers. In the second stage,",
    "The old lighthouse keeper climbed the spiral stairs every evening, just as his father had done before him, and his "
    "father before that. " * 8 + "One night,",
    "<|im_start|>user\nSummarise the following text in one sentence.\n\n" + "The river rises in the hills to the north "
    "and flows past three towns before it reaches the sea. In spring it floods the meadows, and the farmers wait for "
    "the water to fall before they sow. " * 5 + "<|im_end|>\n<|im_start|>assistant\n",
]


def write_golden(path, token_ids, prompt_tokens, logits, full_positions, top):
    logits = logits.astype(np.float32)
    n, vocab = logits.shape
    assert n == len(token_ids)
    top = min(top, vocab)
    wide = logits.astype(np.float64)
    peak = wide.max(-1, keepdims=True)
    lse = (np.log(np.exp(wide - peak).sum(-1)) + peak[:, 0]).astype("<f4")
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :top].astype("<i4")
    header = json.dumps({"token_ids": [int(t) for t in token_ids], "prompt_tokens": prompt_tokens, "vocab_size": vocab,
                         "top": top, "full_positions": full_positions}).encode()
    header += b" " * (-(12 + len(header)) % 8)
    with open(path, "wb") as out:
        out.write(b"EKGOLD1\n" + struct.pack("<I", len(header)) + header)
        out.write(lse.tobytes())
        out.write(order.tobytes())
        out.write(np.take_along_axis(logits, order, -1).astype("<f4").tobytes())
        out.write(logits[full_positions].astype("<f4").tobytes())
    print(path.name, n, "positions", path.stat().st_size, "bytes", flush=True)


@torch.no_grad()
def forward(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


@torch.no_grad()
def greedy(model, ids, count):
    """Plain argmax decoding; end-of-sequence tokens do not stop it."""
    ids, cache, feed = list(ids), None, list(ids)
    for _ in range(count):
        out = model(torch.tensor([feed]), past_key_values=cache, use_cache=True)
        cache, feed = out.past_key_values, [int(out.logits[0, -1].argmax())]
        ids += feed
    return ids


def smollm2(gguf):
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    gguf = pathlib.Path(gguf)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers drops the digit split of pre-tokenizer "smollm" when it reads a GGUF.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    folder = HERE / "smollm2"
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(PROMPTS):
        prompt = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        ids = greedy(model, prompt, 64)
        logits = forward(model, ids)
        follows = logits[len(prompt) - 1:-1].argmax(-1).tolist()
        assert follows == ids[len(prompt):], "one pass and step by step disagree"
        margin = np.sort(logits[len(prompt) - 1:-1], axis=-1)
        print("smallest greedy margin", float((margin[:, -1] - margin[:, -2]).min()))
        write_golden(folder / f"prompt_{i:02}.golden", ids, len(prompt), logits, [len(prompt) - 1], TOP)


# As published checkpoints write config.json. Sizes are odd on purpose: head_dim is not hidden / heads (mistral),
# no multiple of 16 (linear), groups of 5, 3, 2 and 1 query heads a KV head.
BASE = {"bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "use_cache": True, "vocab_size": 320}
TINY = {
    "tiny_qwen2": dict(BASE, architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=96,
                       intermediate_size=160, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
                       max_position_embeddings=256, max_window_layers=3, rope_theta=1000000.0, sliding_window=None,
                       use_sliding_window=False, tie_word_embeddings=True, rms_norm_eps=1e-6, torch_dtype="bfloat16"),
    "tiny_mistral": dict(BASE, architectures=["MistralForCausalLM"], model_type="mistral", hidden_size=96,
                         intermediate_size=160, num_hidden_layers=2, num_attention_heads=5, num_key_value_heads=1,
                         head_dim=32, max_position_embeddings=512, rope_theta=10000.0, sliding_window=20,
                         torch_dtype="float32"),
    "tiny_llama3": dict(BASE, architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=128,
                        intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                        head_dim=32, max_position_embeddings=1024, rope_theta=500000.0, attention_bias=False,
                        mlp_bias=False, torch_dtype="bfloat16",
                        rope_scaling={"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                      "original_max_position_embeddings": 64, "rope_type": "llama3"}),
    "tiny_yarn": dict(BASE, architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=64,
                      intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
                      max_position_embeddings=256, rope_theta=10000.0, attention_bias=True, mlp_bias=True,
                      torch_dtype="float32",
                      rope_scaling={"factor": 4.0, "original_max_position_embeddings": 64, "rope_type": "yarn"}),
    "tiny_linear": dict(BASE, architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=120,
                        intermediate_size=136, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
                        max_position_embeddings=256, rope_theta=10000.0, attention_bias=False, mlp_bias=False,
                        torch_dtype="float16", rope_scaling={"factor": 2.5, "type": "linear"}),
}


def tiny():
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM
    for number, (name, settings) in enumerate(TINY.items()):
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        torch.manual_seed(1000 + number)
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
        stored = getattr(torch, settings["torch_dtype"])
        with torch.no_grad():  # larger than training starts with, so that attention is far from uniform
            for key, value in model.named_parameters():
                if key.endswith("bias"):
                    fresh = torch.randn_like(value) * 0.3
                elif value.dim() == 1:
                    fresh = 1 + 0.1 * torch.randn_like(value)
                else:
                    fresh = torch.randn_like(value) * 1.5 / value.shape[1] ** 0.5
                value.copy_(fresh.to(stored).float())
        state = {key: value.detach().to(stored).contiguous() for key, value in model.named_parameters()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)
        for i, length in enumerate((1, 37, 150)):
            prompt = torch.randint(3, settings["vocab_size"], (length,)).tolist()
            ids = greedy(model, prompt, 24)
            logits = forward(model, ids)
            assert logits[length - 1:-1].argmax(-1).tolist() == ids[length:]
            full = list(range(len(ids))) if length < 100 else [0, 63, 64, 100, len(ids) - 1]
            write_golden(folder / f"prompt_{i:02}.golden", ids, length, logits, full, 16)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", metavar="GGUF")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.smollm2:
        smollm2(arguments.smollm2)
    if arguments.tiny:
        tiny()
