"""Writes the seeds of gguf_fuzz and safetensors_fuzz with the formats' own writers (PyPI gguf, safetensors, numpy)."""

import json
import pathlib

import gguf
import numpy as np
from safetensors.numpy import save

here = pathlib.Path(__file__).parent
rng = np.random.default_rng(1)


def write_gguf(name, arch, spm, tensors=True):
    w = gguf.GGUFWriter(here / "gguf" / name, arch)
    w.add_name("Seed")
    w.add_embedding_length(32)
    w.add_feed_forward_length(64)
    w.add_block_count(1)
    w.add_context_length(128)
    w.add_head_count(4)
    w.add_head_count_kv(2)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN if spm else gguf.RopeScalingType.LINEAR)
    w.add_rope_scaling_factor(2.0)
    if spm:
        w.add_tokenizer_model("llama")
        w.add_token_list(["<unk>", "<s>", "</s>", "<0x0A>", "▁a", "b"])
        w.add_token_scores([0.0, 0.0, 0.0, 0.0, -1.0, -2.0])
        w.add_token_types([2, 3, 3, 6, 1, 4])
    else:
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("smollm")
        w.add_token_list(["<|im_end|>", "a", "b", "ab", "Ġ", "Ċ"])
        w.add_token_types([3, 1, 1, 1, 1, 1])
        w.add_token_merges(["a b"])
        w.add_eos_token_id(0)
        w.add_chat_template("{{ messages[0].content }}")
    if tensors:
        quantised = [gguf.GGMLQuantizationType[n] for n in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")]

        def add(name, shape, kind=None):
            data = rng.standard_normal(shape).astype(np.float32)
            if kind is None:
                w.add_tensor(name, data)
            else:
                w.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)

        add("token_embd.weight", (6, 32), quantised[0])
        add("output_norm.weight", (32,))
        add("blk.0.attn_norm.weight", (32,))
        for i, (n, shape) in enumerate({"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32),
                                        "attn_output": (32, 32)}.items()):
            add(f"blk.0.{n}.weight", shape, quantised[i + 1])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


(here / "gguf").mkdir(exist_ok=True)
(here / "safetensors").mkdir(exist_ok=True)
write_gguf("llama.gguf", "llama", spm=False)
write_gguf("qwen2.gguf", "qwen2", spm=True)
write_gguf("vocabulary.gguf", "llama", spm=False, tensors=False)
table = {
    "model.norm.weight": rng.standard_normal(8).astype(np.float32),
    "a": rng.standard_normal((2, 3)).astype(np.float16),
    "b": np.arange(4, dtype=np.int64),
    "empty": np.zeros((0, 4), dtype=np.float32),
}
(here / "safetensors" / "file").write_bytes(b"f" + save(table, metadata={"format": "pt"}))
(here / "safetensors" / "index").write_bytes(b"i" + json.dumps(
    {"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}).encode())
