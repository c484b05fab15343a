#!/usr/bin/env python3
"""The GPU issue's serving rows, over HTTP: a server with random weights of a published shape, and `ekiben bench` beside it.

  bench/gpu_rows.py --out bench/results/h100/llama3_8b_bf16.json                        # about 4 minutes
  bench/gpu_rows.py --out bench/results/h100/llama3_8b_fp8.json -- --dtype fp8 --kv_cache_dtype fp8

One server for all rows, with its defaults and the options after `--`. Rows (--rows users,inprocess,closed,max):
  users      the article's: prompts of 30 to 150 tokens, 512 out, 10, 50 and 100 users
  inprocess  the same for 100 users without HTTP, after the server has ended: what HTTP costs
  closed     1,024 in, 512 out, 8 to 128 users
  max        as many users as the server takes at once, 128/128 and 1,000/1,000
Greedy, answers of exactly the asked length. Only the standard library is used.
"""
import argparse
import datetime
import json
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench/peers"))
from compare_llama import Server, free_port, git_commit, run_json, say  # noqa: E402

ARTICLE = "--prompt_tokens_min 30 --prompt_tokens 150 --output_tokens 512"
CLOSED = "--prompt_tokens 1024 --output_tokens 512"


def rows_of(kind, full):
    """(load options, users) of a kind of rows."""
    if kind == "users":
        return [(ARTICLE, users) for users in (10, 50, 100)]
    if kind == "closed":
        return [(CLOSED, users) for users in (8, 16, 32, 64, 128)]
    if kind == "max":
        return [("--prompt_tokens 128 --output_tokens 128", full), ("--prompt_tokens 1000 --output_tokens 1000", full)]
    raise SystemExit(f"--rows: {kind} is not one of users, inprocess, closed, max")


def bench(args, where, load, users):
    command = (f"{args.ekiben} bench {where} {load} --users {users} --ramp {args.ramp} --duration {args.duration} "
               f"--ignore_eos --json")
    report, error = run_json(command, args.ramp + args.duration + 300)
    if error:
        say(f"{command}\n{error}")
        return {"command": command, "error": str(error)[-500:]}
    level = report["levels"][0]
    row = {"command": command, "users": users, "tokens_per_s": level["tokens_per_s"], "ttft_ms": level["ttft_ms"],
           "itl_token_ms": level["itl_token_ms"], "tpot_ms": level.get("tpot_ms"), "requests": level["requests"],
           "mismatches": level["mismatches"], "client": level["client"]}
    say(f"{load:62} {users:4} users {level['tokens_per_s']:9.0f} tok/s, first token p50 {level['ttft_ms']['p50']:7.1f} "
        f"p99 {level['ttft_ms']['p99']:7.1f} ms, between tokens p50 {level['itl_token_ms']['p50']:6.2f} "
        f"p99 {level['itl_token_ms']['p99']:6.2f} ms, failed {level['requests']['failed']}, "
        f"of another length {level['mismatches']['output_length']}")
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ekiben", default=str(ROOT / "build/release/ekiben"))
    parser.add_argument("--shape", default="llama-3-8b")
    parser.add_argument("--device", default="cuda", help="fake: tries the script where there is no GPU")
    parser.add_argument("--rows", default="users,inprocess,closed,max")
    parser.add_argument("--users_max", type=int, default=256, help="of the rows max")
    parser.add_argument("--ramp", type=float, default=20)
    parser.add_argument("--duration", type=float, default=30)
    parser.add_argument("--out", required=True)
    parser.add_argument("--log", default="/dev/null")
    parser.add_argument("server_options", nargs="*")
    args = parser.parse_args()
    port, options = free_port(), " ".join(args.server_options)
    model = f"--synth {args.shape} --device {args.device} {options}".strip()
    server_command = f"{args.ekiben} serve {model} --host 127.0.0.1 --port {port}"
    gpu = subprocess.run("nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || true", shell=True,
                         capture_output=True, text=True, check=True).stdout.strip()
    out = {"date": datetime.date.today().isoformat(), "commit": git_commit(), "gpu": gpu,
           "server_command": server_command, "rows": {}}
    kinds = args.rows.split(",")
    begin = time.monotonic()
    with Server(server_command, port, "/readyz", args.log):
        out["ready_s"] = round(time.monotonic() - begin, 2)
        say(f"ready after {out['ready_s']} s: {server_command}")
        for kind in kinds:
            if kind == "inprocess":
                continue
            out["rows"][kind] = [bench(args, f"--url http://127.0.0.1:{port}", load, users)
                                 for load, users in rows_of(kind, args.users_max)]
            pathlib.Path(args.out).write_text(json.dumps(out, indent=1) + "\n")
    if "inprocess" in kinds:
        out["rows"]["inprocess"] = [bench(args, model, ARTICLE, 100)]
    pathlib.Path(args.out).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
