"""Files for the reader: quants.gguf with a tensor of every type, quants.npz with what the gguf package reads of it.

    python make_gguf.py OUT      (gguf 0.17 or later, numpy)

Types that the package can quantise are made of normal numbers; the K types, which it can only read, of random blocks whose
float16 scales are small.
"""
import sys

import gguf
import numpy as np
from gguf import quants

out = sys.argv[1]
rng = np.random.default_rng(7)
Q = gguf.GGMLQuantizationType
# where the float16 numbers stand in a block of the K types, and the bytes of a block
halves = {Q.Q2_K: (80, 82), Q.Q3_K: (108,), Q.Q4_K: (0, 2), Q.Q5_K: (0, 2), Q.Q6_K: (208,)}

w = gguf.GGUFWriter(f"{out}/quants.gguf", "test")
w.add_array("tokens", ["a", "bb", "ccc"])
w.add_array("numbers", [1, 2, 3])
w.add_float32("f", 0.5)
expected = {}


def add(name, data, kind):
    w.add_tensor(name, data, raw_dtype=kind)
    expected[name] = quants.dequantize(data, kind).astype(np.float32)


x = rng.standard_normal((3, 2, 256)).astype(np.float32)
for kind in (Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.BF16):
    add(kind.name, quants.quantize(x, kind), kind)
for kind, at in halves.items():
    size = gguf.GGML_QUANT_SIZES[kind][1]
    raw = rng.integers(0, 256, (6, size), dtype=np.uint8)
    for k in at:
        raw[:, k : k + 2] = (rng.standard_normal((6, 1)) / 16).astype(np.float16).view(np.uint8)
    add(kind.name, raw.reshape(3, 2 * size), kind)
for name, data in (("F32", x[0]), ("F16", x[1].astype(np.float16)), ("F64", x[2].astype(np.float64)), ("I32", np.arange(-3, 5, dtype=np.int32))):
    w.add_tensor(name, data)
    expected[name] = data.astype(np.float32)
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
np.savez(f"{out}/quants.npz", **expected)
