#!/usr/bin/env python3
"""ekiben beside llama.cpp on one machine in one session, taking turns.

  bench/peers/build_llama.sh MODEL.gguf          # once: the peer's programs and its BF16 and Q8_0 files
  bench/peers/compare_llama.py --engine ENGINE --out bench/results/llama.json

Two tables:
  served  each server alone on the machine, the same client (`ekiben bench`), the same prompts (one seed a pair), prefix
          reuse off on both sides, 100 tokens in, 64 out exactly; per number of users N pairs, and the side that goes
          first alternates. The ratio reported is the median of the pairs' ratios.
  steps   context of 512, one stream, generation of 10 and 50 sequences: the peer by its own llama-bench and
          llama-batched-bench, ekiben by `bench --in-process --burst`, taking turns too.

The peer runs in whichever of its files (BF16, Q8_0, Q4_1) is best at the row: each is tried briefly first.
Only the standard library is used. A turn that fails is recorded as failed and the rest goes on; the exit code is then 1.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = {"BF16": "smollm2-bf16.gguf", "Q8_0": "smollm2-q8_0.gguf", "Q4_1": "smollm2-q4_1.gguf"}
STEP_ROWS = ("context_512", "one_stream", "generation_10", "generation_50")


def say(text):
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_json(command, timeout):
    """Runs a shell command whose stdout is one JSON value; (value, error)."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        return None, f"exit {done.returncode}: {done.stderr.strip()[-400:]}"
    try:
        return json.loads(done.stdout), None
    except ValueError as error:
        return None, f"no JSON on stdout: {error}: {done.stdout[:200]!r}"


class Server:
    """A server process that is ready inside the `with` and gone after it."""

    def __init__(self, command, port, ready_path, log):
        self.command, self.port, self.ready_path, self.log = command, port, ready_path, log

    def __enter__(self):
        out = open(self.log, "a")
        begin = time.monotonic()
        self.process = subprocess.Popen(shlex.split(self.command), stdout=out, stderr=out, start_new_session=True)
        url = f"http://127.0.0.1:{self.port}{self.ready_path}"
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.command}: exit {self.process.returncode}; see {self.log}")
            try:
                with urllib.request.urlopen(url, timeout=1) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                pass
            if time.monotonic() - begin > 120:
                self.__exit__()
                raise RuntimeError(f"{self.command}: not ready within 120 s; see {self.log}")
            time.sleep(0.05)
        self.ready_s = time.monotonic() - begin
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


class Comparison:
    def __init__(self, args):
        self.args = args
        self.peer = pathlib.Path(args.peer_dir)
        self.bin = self.peer / "build/bin"
        self.work = pathlib.Path(args.work_dir)
        self.work.mkdir(parents=True, exist_ok=True)
        self.failures = []

    # ---- Served ----------------------------------------------------------------------------------------------------

    def ekiben_server(self):
        port = free_port()
        command = self.args.serve_command.format(ekiben=self.args.ekiben, engine=self.args.engine, port=port,
                                                 threads=self.args.threads)
        return Server(command, port, "/readyz", self.work / "ekiben-server.log")

    def llama_server(self, kind):
        port = free_port()
        per_slot = self.args.prompt_tokens + self.args.output_tokens + 28
        command = (f"{self.bin}/llama-server -m {self.peer / FILES[kind]} -t {self.args.threads} -np {self.args.slots} "
                   f"-c {self.args.slots * per_slot} --no-cache-prompt -cram 0 --no-ui --host 127.0.0.1 --port {port}")
        return Server(command, port, "/health", self.work / "llama-server.log")

    def served_turn(self, server, users, seed, ramp, duration):
        """One bench run of one level; the level's JSON or None."""
        try:
            with server:
                report, error = run_json(
                    self.args.bench_command.format(
                        ekiben=self.args.ekiben, url=f"http://127.0.0.1:{server.port}", users=users, ramp=ramp,
                        duration=duration, prompt_tokens=self.args.prompt_tokens,
                        output_tokens=self.args.output_tokens, seed=seed),
                    ramp + duration + 600)
        except (RuntimeError, subprocess.TimeoutExpired) as failure:
            report, error = None, str(failure)
        if error:
            self.failures.append(error)
            say("FAILED " + error)
            return None
        level = report["levels"][0]
        level["ready_s"] = round(server.ready_s, 3)
        level["prompts"] = report["prompts"]
        return level

    def served_row(self, users, pairs_wanted):
        args = self.args
        tried = {}
        for kind in args.types:
            if len(args.types) == 1:
                break
            level = self.served_turn(self.llama_server(kind), users, 1, args.scout_ramp, args.scout_duration)
            tried[kind] = level["tokens_per_s"] if level else 0
            say(f"served {users} users, llama.cpp {kind}: {tried[kind]:.1f} tok/s")
        best = max(tried, key=tried.get) if tried else args.types[0]
        pairs = []
        for pair in range(pairs_wanted):
            order = ["ekiben", "llama"] if pair % 2 == 0 else ["llama", "ekiben"]
            got = {}
            for side in order:
                server = self.ekiben_server() if side == "ekiben" else self.llama_server(best)
                got[side] = self.served_turn(server, users, 1000 + pair, args.ramp, args.duration)
            if got["ekiben"] and got["llama"]:
                pairs.append(got)
                say(f"served {users} users, pair {pair + 1}/{pairs_wanted}: ekiben "
                    f"{got['ekiben']['tokens_per_s']:.1f}, llama.cpp {best} {got['llama']['tokens_per_s']:.1f} tok/s; "
                    f"TTFT p99 {got['ekiben']['ttft_ms']['p99']:.0f}, {got['llama']['ttft_ms']['p99']:.0f} ms")
        row = {"users": users, "llama_type": best, "llama_tried_tokens_per_s": tried, "pairs": pairs}
        if pairs:
            ratio = lambda read: [read(p["ekiben"]) / read(p["llama"]) for p in pairs if read(p["llama"]) > 0]
            row["tokens_ratio"] = spread(ratio(lambda level: level["tokens_per_s"]))
            row["ttft_p99_ratio"] = spread(ratio(lambda level: level["ttft_ms"]["p99"]))
        return row

    # ---- Steps -----------------------------------------------------------------------------------------------------

    def llama_step(self, row, kind):
        """tokens/s of one row by the peer's own programs."""
        model = self.peer / FILES[kind]
        threads = self.args.threads
        if row in ("context_512", "one_stream"):
            shape = "-p 512 -n 0" if row == "context_512" else "-p 0 -n 128"
            value, error = run_json(f"{self.bin}/llama-bench -m {model} -t {threads} {shape} -fa 0,1 -r 2 -o json "
                                    f"2>>{self.work}/llama-bench.log", 600)
            rates = [test["avg_ts"] for test in value] if value else []
        else:
            sequences = int(row.split("_")[1])
            rates = []
            error = None
            for attention in ("off", "on"):
                lines, error = run_lines(
                    f"{self.bin}/llama-batched-bench -m {model} -t {threads} -c {(128 + 64 + 8) * sequences} -b 2048 "
                    f"-ub 512 -npp 128 -ntg 64 -npl {sequences} -fa {attention} --output-format jsonl "
                    f"2>>{self.work}/llama-bench.log", 900)
                rates += [line["speed_tg"] for line in lines or []]
        if error or not rates:
            self.failures.append(f"llama.cpp {row} {kind}: {error or 'no rate in its output'}")
            say("FAILED " + self.failures[-1])
            return None
        return max(rates)  # with or without flash attention, whichever is faster

    def ekiben_step(self, row):
        """tokens/s of one row by ekiben, in process: `bench --burst` prints context and generation apart."""
        sequences = {"context_512": 1, "one_stream": 1}.get(row) or int(row.split("_")[1])
        prompt = 512 if row == "context_512" else 128
        output = {"context_512": 2, "one_stream": 128}.get(row, 64)
        value, error = run_json(
            self.args.burst_command.format(ekiben=self.args.ekiben, engine=self.args.engine, sequences=sequences,
                                           prompt_tokens=prompt, output_tokens=output, repeat=3,
                                           threads=self.args.threads), 900)
        if error:
            self.failures.append(f"ekiben {row}: {error}")
            say("FAILED " + self.failures[-1])
            return None
        return value["context_tokens_per_s" if row == "context_512" else "generation_tokens_per_s"]["median"]

    def step_row(self, row):
        tried = {}
        for kind in self.args.types if len(self.args.types) > 1 else []:
            tried[kind] = self.llama_step(row, kind) or 0
            say(f"{row}, llama.cpp {kind}: {tried[kind]:.1f} tok/s")
        best = max(tried, key=tried.get) if tried else self.args.types[0]
        pairs = []
        for pair in range(self.args.step_pairs):
            if pair % 2 == 0:
                ours, theirs = self.ekiben_step(row), self.llama_step(row, best)
            else:
                theirs, ours = self.llama_step(row, best), self.ekiben_step(row)
            if ours and theirs:
                pairs.append({"ekiben": ours, "llama": theirs})
                say(f"{row}, pair {pair + 1}/{self.args.step_pairs}: ekiben {ours:.1f}, llama.cpp {best} {theirs:.1f} tok/s")
        out = {"row": row, "llama_type": best, "llama_tried_tokens_per_s": tried, "pairs": pairs}
        if pairs:
            out["tokens_ratio"] = spread([p["ekiben"] / p["llama"] for p in pairs])
        return out


def run_lines(command, timeout):
    """As run_json for a command that prints JSON lines among others."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=timeout)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return lines, None if done.returncode == 0 else f"exit {done.returncode}: {done.stderr.strip()[-400:]}"


def spread(values):
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def machine():
    cpu = "unknown"
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                cpu = line.split(": ", 1)[1].strip()
                break
    return {"cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release(), "load_average": os.getloadavg()}


def git_commit():
    done = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or None


def table(report):
    median = lambda pairs, read: statistics.median(read(pair) for pair in pairs)
    lines = ["| | ekiben | llama.cpp | ratio (min..max of pairs) | TTFT p99 ms | ITL p50 ms |", "|---|---|---|---|---|---|"]
    for row in report["steps"]:
        if not row["pairs"]:
            lines.append(f"| {row['row']} | failed | | | | |")
            continue
        ratio = row["tokens_ratio"]
        lines.append(f"| {row['row']}, tok/s | {median(row['pairs'], lambda p: p['ekiben']):.0f} | "
                     f"{median(row['pairs'], lambda p: p['llama']):.0f} ({row['llama_type']}) | {ratio['median']:.2f} "
                     f"({ratio['min']:.2f}..{ratio['max']:.2f}) | | |")
    for row in report["served"]:
        if not row["pairs"]:
            lines.append(f"| served to {row['users']} | failed | | | | |")
            continue
        ratio, pairs = row["tokens_ratio"], row["pairs"]
        both = lambda read: " / ".join(f"{median(pairs, lambda p, side=side: read(p[side])):.1f}" for side in ("ekiben", "llama"))
        lines.append(f"| served to {row['users']} users, tok/s | {median(pairs, lambda p: p['ekiben']['tokens_per_s']):.1f} | "
                     f"{median(pairs, lambda p: p['llama']['tokens_per_s']):.1f} ({row['llama_type']}) | "
                     f"{ratio['median']:.2f} ({ratio['min']:.2f}..{ratio['max']:.2f}) | "
                     f"{both(lambda level: level['ttft_ms']['p99'])} | {both(lambda level: level['itl_token_ms']['p50'])} |")
    return "\n".join(lines)


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ekiben", default=str(ROOT / "build/release/ekiben"))
    p.add_argument("--engine", required=True, help="engine directory (or checkpoint) that ekiben serves")
    p.add_argument("--peer_dir", default="/tmp/peers/llama")
    p.add_argument("--work_dir", default="/tmp/peers/work", help="server logs")
    p.add_argument("--out", required=True, help="JSON report; the table goes to stdout")
    p.add_argument("--rows", default="steps,served")
    p.add_argument("--step_rows", default=",".join(STEP_ROWS))
    p.add_argument("--users", default="1,10,50,100", help="levels; N:PAIRS gives one its own number of pairs")
    p.add_argument("--pairs", type=int, default=5)
    p.add_argument("--step_pairs", type=int, default=3)
    p.add_argument("--ramp", type=float, default=5)
    p.add_argument("--duration", type=float, default=60)
    p.add_argument("--scout_ramp", type=float, default=3)
    p.add_argument("--scout_duration", type=float, default=12)
    p.add_argument("--types", default="BF16,Q8_0,Q4_1", help="the peer's files; one name: no trying out")
    p.add_argument("--threads", type=int, default=os.cpu_count(), help="of both sides")
    p.add_argument("--slots", type=int, default=50)
    p.add_argument("--prompt_tokens", type=int, default=100)
    p.add_argument("--output_tokens", type=int, default=64)
    p.add_argument("--serve_command",
                   default="{ekiben} serve {engine} --host 127.0.0.1 --port {port} --enable_kv_cache_reuse disable "
                           "--threads {threads}")
    p.add_argument("--bench_command",
                   default="{ekiben} bench --url {url} --users {users} --ramp {ramp} --duration {duration} "
                           "--prompt_tokens {prompt_tokens} --output_tokens {output_tokens} --ignore_eos --seed {seed} --json")
    p.add_argument("--burst_command",
                   default="{ekiben} bench --in-process {engine} --burst {sequences} --repeat {repeat} "
                           "--prompt_tokens {prompt_tokens} --output_tokens {output_tokens} --ignore_eos "
                           "--threads {threads} --json")
    args = p.parse_args()
    args.types = args.types.split(",")
    for kind in args.types:
        if kind not in FILES:
            p.error(f"--types: {kind} is not one of {', '.join(FILES)}")
        if not (pathlib.Path(args.peer_dir) / FILES[kind]).exists():
            p.error(f"{args.peer_dir}/{FILES[kind]} is missing: run bench/peers/build_llama.sh first")
    return args


def main():
    args = parse_args()
    comparison = Comparison(args)
    report = {"schema": "ekiben.compare_llama", "schema_version": 1,
              "started_utc": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
              "command": " ".join(shlex.quote(word) for word in sys.argv), "commit": git_commit(), "machine": machine(),
              "peer": "llama.cpp in llama-cpp-python 0.3.36, built natively", "steps": [], "served": []}

    def keep():  # after each row: an interrupted session keeps what it measured
        report["failures"] = comparison.failures
        pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(args.out).write_text(json.dumps(report, indent=1) + "\n")

    if "steps" in args.rows.split(","):
        for row in args.step_rows.split(","):
            report["steps"].append(comparison.step_row(row))
            keep()
    if "served" in args.rows.split(","):
        for level in args.users.split(","):
            users, _, pairs = level.partition(":")
            report["served"].append(comparison.served_row(int(users), int(pairs or args.pairs)))
            keep()
    keep()
    print(table(report))
    return 1 if comparison.failures else 0


if __name__ == "__main__":
    sys.exit(main())
