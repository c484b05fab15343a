#!/usr/bin/env python3
"""The table of docs/gpu.md from `ekiben kernels --device cuda --json`: kernels_table.py FILE.json

A row an op and shape, a column a token count: microseconds of one call, and its share of the measured limit that it is
nearer to, reading or multiplying, in percent. A linear's cell ends in the kernel it runs with: o for the own one, else the
number of cuBLASLt's candidate."""
import json
import sys


def cell(op):
    share = max(op["share_of_peak"], op["share_of_bandwidth"])
    kernel = op.get("kernel", "")
    mark = " o" if kernel == "own" else " " + kernel.split()[1] if kernel.startswith("cuBLASLt") else ""
    return f"{op['us']:.1f} ({100 * share:.0f}){mark}"


def main():
    result = json.load(open(sys.argv[1]))
    peaks = result["peaks"]
    print(f"{result['device']}, {result['engine']}, {result['dtype']}, cache {result['kv_cache_dtype']}: read "
          f"{peaks['read_bytes_per_s'] * 1e-12:.2f} TB/s, bf16 {peaks['bf16_operations_per_s'] * 1e-12:.0f}, fp8 "
          f"{peaks['fp8_operations_per_s'] * 1e-12:.0f} TFLOP/s\n")
    tokens = sorted({op["tokens"] for op in result["ops"]})
    rows = {}
    for op in result["ops"]:
        heads, _, where = op["shape"].partition(", ")
        rows.setdefault(op["op"] + (", " + where if where else ""), {})[op["tokens"]] = cell(op)
    print("| op | " + " | ".join(map(str, tokens)) + " |")
    print("|---|" + "---|" * len(tokens))
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells.get(t, "") for t in tokens) + " |")


if __name__ == "__main__":
    main()
