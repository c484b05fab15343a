#!/usr/bin/env python3
"""What HTTP costs: the same closed-loop load over the socket and in process, taking turns.

  bench/http_cost.py --engine ENGINE --out bench/results/cpu_http_cost.json      # about 7 minutes

A pair is one run of each, with the same seed and so the same prompts; the side that goes first alternates. The ratio
reported is the median of the pairs' ratios. On a small machine the load client takes CPU from the server, over HTTP more
than in process: each side's share of the machine is printed, and the ratio of tokens per second and core that the client
left. So is what the server's threads other than the computing ones took (I/O, pre- and postprocessing).
Only the standard library is used.
"""
import argparse
import datetime
import json
import os
import pathlib
import shlex
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench/peers"))
from compare_llama import Server, free_port, git_commit, machine, run_json, say, spread  # noqa: E402


def thread_seconds(pid):
    """CPU seconds of each thread, the busiest first."""
    tick, seconds = os.sysconf("SC_CLK_TCK"), []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        seconds.append((int(fields[11]) + int(fields[12])) / tick)
    return sorted(seconds, reverse=True)


def bench(args, where, seed):
    command = (f"{args.ekiben} bench {where} --users {args.users} --ramp {args.ramp} --duration {args.duration} "
               f"--prompt_tokens {args.prompt_tokens} --output_tokens {args.output_tokens} --ignore_eos --seed {seed} --json")
    report, error = run_json(command, args.ramp + args.duration + 120)
    if error:
        raise SystemExit(f"{command}\n{error}")
    level = report["levels"][0]
    if level["requests"]["failed"] or level["mismatches"]["output_length"]:
        raise SystemExit(f"{command}\nfailed or short answers: {level['requests']} {level['mismatches']}")
    return {"command": command, "tokens_per_s": level["tokens_per_s"], "ttft_ms_p50": level["ttft_ms"]["p50"],
            "ttft_ms_p99": level["ttft_ms"]["p99"], "itl_ms_p50": level["itl_token_ms"]["p50"],
            "itl_ms_p99": level["itl_token_ms"]["p99"], "client_cores": level["client"]["cpu_share"]}


def over_http(args, seed):
    port = free_port()
    command = (f"{args.ekiben} serve {args.engine} --host 127.0.0.1 --port {port} --enable_kv_cache_reuse disable "
               f"--threads {args.threads}")
    with Server(command, port, "/readyz", args.log) as server:
        run = bench(args, f"--url http://127.0.0.1:{port}", seed)
        seconds = thread_seconds(server.process.pid)
    run["server_command"] = command
    run["server_other_threads_cores"] = sum(seconds[args.threads:]) / (args.ramp + args.duration)
    return run


def in_process(args, seed):
    return bench(args, f"--in-process {args.engine} --enable_kv_cache_reuse disable --threads {args.threads}", seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ekiben", default=str(ROOT / "build/release/ekiben"))
    parser.add_argument("--engine", required=True, help="an engine folder: built beforehand, so that no run builds it")
    parser.add_argument("--out", required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--ramp", type=float, default=4)
    parser.add_argument("--duration", type=float, default=30)
    parser.add_argument("--prompt_tokens", type=int, default=100)
    parser.add_argument("--output_tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--log", default="/tmp/ekiben_http_cost.log", help="of the servers")
    args = parser.parse_args()
    cores, pairs = os.cpu_count(), []
    for number in range(args.pairs):
        sides = [("http", over_http), ("in_process", in_process)]
        pair = {name: side(args, 2000 + number) for name, side in (sides if number % 2 == 0 else sides[::-1])}
        http, own = pair["http"], pair["in_process"]
        pair["ratio"] = http["tokens_per_s"] / own["tokens_per_s"]
        pair["ratio_per_core_left"] = pair["ratio"] * (cores - own["client_cores"]) / (cores - http["client_cores"])
        pairs.append(pair)
        say(f"pair {number + 1}/{args.pairs}: HTTP {http['tokens_per_s']:.1f}, in process {own['tokens_per_s']:.1f} tok/s: "
            f"{100 * pair['ratio']:.1f} %; the client took {100 * http['client_cores'] / cores:.2f} and "
            f"{100 * own['client_cores'] / cores:.2f} % of the machine, the server's other threads "
            f"{100 * http['server_other_threads_cores'] / cores:.2f} %")
    ratios = {key: spread([pair[key] for pair in pairs]) for key in ("ratio", "ratio_per_core_left")}
    report = {"schema": "ekiben.http_cost", "schema_version": 1,
              "started_utc": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
              "command": shlex.join(sys.argv), "commit": git_commit(), "machine": machine(), **ratios, "pairs": pairs}
    pathlib.Path(args.out).write_text(json.dumps(report, indent=1) + "\n")
    middle = lambda side, key: statistics.median(pair[side][key] for pair in pairs)
    for side in ("http", "in_process"):
        print(f"{side:10}  {middle(side, 'tokens_per_s'):8.1f} tok/s  TTFT p50 {middle(side, 'ttft_ms_p50'):.0f}, p99 "
              f"{middle(side, 'ttft_ms_p99'):.0f} ms  ITL p50 {middle(side, 'itl_ms_p50'):.1f}, p99 "
              f"{middle(side, 'itl_ms_p99'):.1f} ms  client {100 * middle(side, 'client_cores') / cores:.2f} % of the machine")
    for key, text in (("ratio", "HTTP of in process"), ("ratio_per_core_left", "the same by core that the client left")):
        print(f"{text}: {100 * ratios[key]['median']:.1f} % ({100 * ratios[key]['min']:.1f}..{100 * ratios[key]['max']:.1f}, "
              f"{ratios[key]['n']} pairs)")


if __name__ == "__main__":
    main()
