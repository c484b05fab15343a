#!/usr/bin/env python3
"""A long prompt that arrives among streams: what it costs them, and what it waits, without and with a bound on steps.

usage: bench/long_prompt.py [--program build/release/ekiben] [--model FILE] [--streams 8] [--words 1500] [--budgets off,60]
                            [--prompts 3] [--output bench/results/cpu_long_prompt.json] [-- OPTIONS OF serve]

For each budget a server of its own (--itl_budget_ms): streams generate all the time; one prompt of so many words comes after the
other. Gaps are between chunks of a stream while a long prompt waits for its first token, and apart from that.
"""
import argparse
import http.client
import json
import os
import pathlib
import platform
import random
import socket
import statistics
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORDS = "river stone quiet morning engine carries seven letters across the narrow valley before winter".split()


def chunks(port, prompt, max_tokens):
    """The times at which the answer's chunks arrived."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    body = {"model": "any", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        sys.exit(f"{response.status}: {response.read()[:300]}")
    while line := response.readline():
        if line.startswith(b"data: {"):
            yield time.monotonic()


def text(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def quantile(values, q):
    values = sorted(values)
    return values[int(q * (len(values) - 1))] if values else 0


def measure(args, budget):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [args.program, "serve", args.model, "--served_model_name", "any", "--port", str(port),
               "--itl_budget_ms", budget, *args.serve]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        rng = random.Random(1)
        times, stop = [[] for _ in range(args.streams)], threading.Event()

        def stream(i):
            while not stop.is_set():
                for at in chunks(port, text(rng, 40), 1000):
                    times[i].append(at)
                    if stop.is_set():
                        return

        threads = [threading.Thread(target=stream, args=(i,), daemon=True) for i in range(args.streams)]
        for thread in threads:
            thread.start()
        time.sleep(3)
        windows = []
        for _ in range(args.prompts):
            begin = time.monotonic()
            windows.append((begin, next(chunks(port, text(rng, args.words), 4))))
            time.sleep(1.5)
        stop.set()
        inside, outside = [], []
        for mine in times:
            for a, b in zip(mine, mine[1:]):
                at = any(begin < b and a < end for begin, end in windows)
                (inside if at else outside).append((b - a) * 1e3)
        row = {"itl_budget_ms": budget, "first_token_ms": [round((e - b) * 1e3, 1) for b, e in windows],
               "first_token_ms_p50": round(statistics.median((e - b) * 1e3 for b, e in windows), 1),
               "gap_ms_p50_apart": round(quantile(outside, .5), 2), "gap_ms_p50_beside": round(quantile(inside, .5), 2),
               "gap_ms_p99_beside": round(quantile(inside, .99), 2), "gap_ms_max_beside": round(max(inside, default=0), 2)}
        print(row, flush=True)
        return row
    finally:
        server.terminate()
        server.wait(30)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(ROOT / "build/release/ekiben"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--words", type=int, default=1500)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--budgets", default="off,60")
    parser.add_argument("--output", default=str(ROOT / "bench/results/cpu_long_prompt.json"))
    parser.add_argument("serve", nargs="*")
    args = parser.parse_args()
    rows = [measure(args, budget) for budget in args.budgets.split(",")]
    commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    pathlib.Path(args.output).write_text(json.dumps({
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", "commit": commit.stdout.strip(),
        "model": pathlib.Path(args.model).name, "streams": args.streams, "prompt_words": args.words, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
