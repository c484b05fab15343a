"""Writes dequantize.bin: random blocks of every GGUF format and their values by gguf-py's reference.

Layout, little-endian, per format: u32 ggml type, u32 bytes, u32 values, the bytes, the values as f32.
Run: pip install gguf numpy; python make_dequantize_golden.py
"""

import pathlib
import struct

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

# Byte offsets of the f16 scales in a block: kept finite, so that the comparison is bit for bit.
F16_AT = {
    T.F16: [0], T.Q8_0: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}

rng = np.random.default_rng(20261123)
out = b""
for kind in (T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q4_K, T.Q5_K, T.Q6_K):
    elements, size = GGML_QUANT_SIZES[kind]
    blocks = {1: 64, 32: 8, 256: 3}[elements]
    raw = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    for at in F16_AT.get(kind, []):
        scale = (rng.standard_normal(blocks) * 10.0 ** rng.integers(-7, 3, blocks)).astype(np.float16)  # some subnormal
        raw[:, at : at + 2] = scale.view(np.uint8).reshape(blocks, 2)
    if kind == T.BF16:
        raw = (rng.standard_normal(blocks).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    raw = raw.reshape(-1)
    values = dequantize(raw.view(np.float16) if kind == T.F16 else raw, kind).astype(np.float32).reshape(-1)
    assert np.isfinite(values).all() and values.size == blocks * elements
    out += struct.pack("<III", kind, raw.size, values.size) + raw.tobytes() + values.tobytes()
path = pathlib.Path(__file__).with_name("dequantize.bin")
path.write_bytes(out)
print(path, len(out))
