#!/usr/bin/env python3
"""Prints the tables of docs/gpu.md from bench/results/cuda_*.json: python3 bench/cuda/tables.py"""
import json
import pathlib

results = pathlib.Path(__file__).resolve().parent.parent / "results"


def rows(name):
    return json.loads((results / f"cuda_{name}.json").read_text())["rows"]


def table(head, lines):
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for line in lines:
        print("| " + " | ".join(str(x) for x in line) + " |")
    print()


layers = ["qkv", "o", "gate_up", "down", "lm_head"]
lt = {(r["type"], r["layer"], r["m"]): r for r in rows("gemm_cublaslt") if "best_us" in r}
tokens = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048]
for kind in ["bf16", "fp8_tensor", "fp8_tensor_fast", "fp8_vector"]:
    print(f"cuBLASLt {kind}: us of the best candidate (share of the floor)\n")
    table(["layer"] + [f"M={m}" for m in tokens],
          [[l] + [f"{min(r['best_us'], r['first_us']):.1f} ({100 * r['floor_us'] / min(r['best_us'], r['first_us']):.0f})"
                  for m in tokens for r in [lt[kind, l, m]]] for l in layers])

skinny = rows("gemm_skinny")
for kind in ["bf16", "fp8"]:
    best = {}
    for r in skinny:
        if r["kind"] == "best" and r["type"] == kind:
            best[r["layer"], r["m"], r["family"], r["dependent"]] = r
    print(f"own {kind}: us serial / dependent of the cluster family (share of the floor, dependent); cuBLASLt's best beside\n")
    lt_kinds = ["bf16"] if kind == "bf16" else ["fp8_tensor", "fp8_tensor_fast"]
    own_tokens = [1, 8, 16, 32, 64, 128]
    table(["layer"] + [f"M={m}" for m in own_tokens],
          [[l] + [f"{best[l, m, 'cluster', 0]['best_us']:.1f} / {best[l, m, 'cluster', 1]['best_us']:.1f} "
                  f"({100 * best[l, m, 'cluster', 1]['floor_us'] / best[l, m, 'cluster', 1]['best_us']:.0f}); "
                  f"{min(min(lt[k, l, m]['best_us'], lt[k, l, m]['first_us']) for k in lt_kinds):.1f}"
                  for m in own_tokens] for l in layers])
    chains = [r for r in skinny if r["kind"] == "chain" and r["type"] == kind]
    print(f"chain of 129 linear layers, {kind}, us\n")
    table(["M", "cuBLASLt", "own serial", "cluster, dependent", "stream, dependent", "stream shared, dependent", "floor", "best of floor"],
          [[r["m"]] + [f"{r[k]:.0f}" for k in ["cublaslt_us", "serial_us", "dependent_cluster_us", "dependent_stream_us",
                                               "dependent_stream_shared_us", "floor_us"]]
           + [f"{100 * r['floor_us'] / min(r['cublaslt_us'], r['serial_us'], r['dependent_cluster_us']):.0f} %"] for r in chains])

versions = [("v1", "attention_decode_v1"), ("v3", "attention_decode_v3"), ("v5", "attention_decode")]
versions = [(v, f) for v, f in versions if (results / f"cuda_{f}.json").exists()]
for kind in ["bf16", "fp8"]:
    for context in [1024, 4096]:
        print(f"attention {kind}, context {context}: us with 8 warps at split 256 / 512 / 1,024; the last version's best and its share\n")
        lines = []
        for b in [1, 4, 8, 16, 32, 64, 128, 256]:
            line = [b]
            for _, name in versions:
                got = {r["split"]: r["us"] for r in rows(name) if r["kind"] == "config" and r["type"] == kind
                       and r["context"] == context and r["batch"] == b and r["warps"] == 8}
                line.append(" / ".join(f"{got[s]:.1f}" for s in (256, 512, 1024)))
            r = [r for r in rows(versions[-1][1]) if r["kind"] == "best" and r["type"] == kind and r["context"] == context
                 and r["batch"] == b][0]
            lines.append(line + [f"{r['best_us']:.1f} (split {r['split']}), {r['tb_per_s']:.2f} TB/s, {100 * r['floor_us'] / r['best_us']:.0f} %"])
        table(["B"] + [v for v, _ in versions] + ["best"], lines)

steps = rows("decode_step")
print("decode step, context 1,024, us (best split of attention for each column)\n")
lines = []
for kind in ["bf16", "fp8"]:
    for b in [1, 8, 16, 32, 64, 128]:
        mine = [r for r in steps if r["kind"] == "step" and r["type"] == kind and r["batch"] == b]
        column = [min(mine, key=lambda r: r[k]) for k in ["cublaslt_serial_us", "own_serial_us", "own_dependent_us"]]
        values = [c[k] for c, k in zip(column, ["cublaslt_serial_us", "own_serial_us", "own_dependent_us"])]
        lines.append([kind, b] + [f"{v:.0f} ({c['split']})" for v, c in zip(values, column)]
                     + [f"{mine[0]['floor_us']:.0f}", f"{100 * mine[0]['floor_us'] / min(values):.0f} %"])
table(["type", "B", "cuBLASLt serial", "own serial", "own dependent", "floor", "best of floor"], lines)
