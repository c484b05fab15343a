#!/usr/bin/env python3
"""The GPU issue's serving rows, over HTTP: a server with random weights of a published shape, and `ekiben bench` beside it.

  bench/gpu_rows.py --out bench/results/h100/rows_bf16.json                                   # every row: 6 minutes
  bench/gpu_rows.py --rows closed,max --out bench/results/h100/rows_fp8.json -- --dtype fp8 --kv_cache_dtype fp8
  bench/gpu_rows.py --rows options --out bench/results/h100/options.json                      # a server for each set: 5 minutes
  bench/gpu_rows.py --markdown bench/results/h100/rows_bf16.json bench/results/h100/rows_fp8.json

One server for all rows but `options` and `inprocess`, with its defaults and the options after `--`. Rows:
  users      the article's: prompts of 30 to 150 tokens, 512 out, 10, 50 and 100 users
  closed     1,024 in, 512 out, 8 to 128 users
  max        as many users as fit the cache at once and a few more: 128/128, 128/2048, 1000/1000, 2048/128, 2048/2048
  inprocess  100 users of `users` without HTTP, after the server has ended: what HTTP costs
  options    the article's table: users under TensorRT-LLM's later defaults, the article's values, no flag, each option alone
closed, max and options start their users somewhere in their answers (`ekiben bench --steady_start`), so that a window of
seconds is as good as one of minutes. Greedy, answers of exactly the asked length. A row that --budget leaves no time for is
said to be left out. Only the standard library is used.

Beside each row stand the issue's target, what vLLM does, and the share of the floor: the least time of a step of so many rows
(Little's law: tokens a second times the mean gap) at the mean context, over the mean gap. Least: weights and cache read once at
3.11 TB/s; or, where its tokens' products take longer than the weights' bytes, those at 778 (bf16) or 1,440 TFLOP/s (fp8).
"""
import argparse
import datetime
import json
import pathlib
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench/peers"))
from compare_llama import Server, free_port, git_commit, run_json, say  # noqa: E402

# (prompt_min, prompt, output)
ARTICLE, CLOSED = (30, 150, 512), (0, 1024, 512)
MAX = [(0, 128, 128), (0, 128, 2048), (0, 1000, 1000), (0, 2048, 128), (0, 2048, 2048)]
USERS, CLOSED_USERS = (10, 50, 100), (8, 16, 32, 64, 128)

# Each option on the later defaults, on the article's values, and alone on no flag. (b)'s prompts are at most 2,048 tokens.
OPTIONS = [
    ("no flag", ""),
    ("TensorRT-LLM's later defaults", "--max_batch_size 256 --max_num_tokens 8192 --enable_chunked_context disable "
                                      "--multiple_profiles disable --postprocessing_instance_count 1"),
    ("the article's values", "--max_batch_size 2048 --max_num_tokens 2048 --max_input_len 2048 --enable_chunked_context enable "
                             "--multiple_profiles enable --gemm_plugin {gemm} --preprocessing_instance_count 1 "
                             "--postprocessing_instance_count 8"),
    ("kv_cache_dtype fp8", "--kv_cache_dtype fp8"),
    ("enable_chunked_context disable", "--enable_chunked_context disable"),
    ("postprocessing_instance_count 8", "--postprocessing_instance_count 8"),
    ("gemm_plugin disable", "--gemm_plugin disable"),
    ("multiple_profiles disable", "--multiple_profiles disable"),
    ("gemm_plugin bfloat16", "--gemm_plugin {gemm}"),
]

# vLLM 0.26.0 (torch 2.11, FlashAttention 3, graphs; defaults but for prefix caching, off) on this kind of machine, the same
# shape with random weights, measured by this project on 2026-11-23: tok/s, first token p50 and p99, time a token p50, gap p99.
VLLM = {
    ("bf16", "users", ARTICLE, 10): (1456, 21, 29, 6.83, 10.8), ("bf16", "users", ARTICLE, 50): (6285, 37, 59, 7.88, 17.4),
    ("bf16", "users", ARTICLE, 100): (10308, 91, 150, 9.57, 20.7), ("fp8", "users", ARTICLE, 10): (2073, 31, 48, 4.77, 16.8),
    ("fp8", "users", ARTICLE, 50): (8078, 61, 108, 6.07, 20.7), ("fp8", "users", ARTICLE, 100): (12511, 170, 248, 7.61, 42),
    ("bf16", "closed", CLOSED, 8): (1080, 196, 222, 7.01, 9.1), ("bf16", "closed", CLOSED, 16): (1939, 317, 398, 7.77, 9.1),
    ("bf16", "closed", CLOSED, 32): (3208, 472, 780, 9.01, 10.3), ("bf16", "closed", CLOSED, 64): (4780, 568, 1595, 12.2, 39),
    ("bf16", "closed", CLOSED, 128): (6244, 982, 3278, 18.53, 191), ("fp8", "closed", CLOSED, 8): (1640, 135, 149, 4.61, 5.1),
    ("fp8", "closed", CLOSED, 64): (7245, 372, 1045, 7.98, 21), ("fp8", "closed", CLOSED, 128): (9341, 592, 2088, 12.5, 123),
}
for dtype, rates in (("bf16", (16616, 10316, 7211, 1920, 4132)), ("fp8", (21961, 16267, 13239, 2932, 7680))):
    VLLM.update({(dtype, "max", load): (rate,) for load, rate in zip(MAX, rates)})

# The issue's: tok/s; first token p50, p99; time a token p50; gap p99 over p50. None: no target.
TARGETS = {
    ("bf16", "users", ARTICLE, 10): (1780, 13, 17, None, None), ("bf16", "users", ARTICLE, 50): (7900, 19, 30, None, None),
    ("bf16", "users", ARTICLE, 100): (13800, 45, 75, None, None), ("fp8", "users", ARTICLE, 10): (3050, None, None, None, None),
    ("fp8", "users", ARTICLE, 50): (13800, None, None, None, None), ("fp8", "users", ARTICLE, 100): (24000, None, None, None, None),
    ("bf16", "closed", CLOSED, 8): (None, None, None, 6.0, None), ("bf16", "closed", CLOSED, 16): (None, None, None, 6.6, None),
    ("bf16", "closed", CLOSED, 32): (None, None, None, 7.7, None), ("bf16", "closed", CLOSED, 64): (None, None, None, 10.2, 1.5),
    ("bf16", "closed", CLOSED, 128): (None, None, None, 16.0, 2),
}
for dtype, rates in (("bf16", (18500, 11500, 8200, 2200, 4900)), ("fp8", (31500, 23500, 16000, 3650, 9900))):
    TARGETS.update({(dtype, "max", load): (rate, None, None, None, None) for load, rate in zip(MAX, rates)})

READ = 3.11e12  # bytes a second
LINEAR_PARAMETERS = 7.504e9  # of llama-3-8b's layers and head; the head's 0.525e9 stay bf16
FLOORS = {"bf16": {"weights": 2 * LINEAR_PARAMETERS, "token": 131072, "flops": 778e12},
          "fp8": {"weights": LINEAR_PARAMETERS + 0.525e9, "token": 65536, "flops": 1440e12}}


def references(report, row):
    """The target's and the peer's figures, padded with None."""
    kind = "users" if row["kind"] in ("inprocess", "options") else row["kind"]
    key = (report["dtype"], kind, tuple(row["load"])) + (() if kind == "max" else (row["users"],))
    known = report["shape"] == "llama-3-8b"
    return [(table.get(key, ()) if known else ()) + (None,) * 5 for table in (TARGETS, VLLM)]


def floor_share(dtype, load, rate, gap_ms):
    """Of llama-3-8b."""
    limit, (low, prompt, output) = FLOORS[dtype], load
    prompt = (low + prompt) / 2 if low else prompt
    rows = rate * gap_ms * 1e-3
    tokens = rows * (1 + prompt / output)
    linears = max(limit["weights"] / READ, tokens * 2 * LINEAR_PARAMETERS / limit["flops"])
    cache = rows * (prompt + output / 2) * limit["token"] / READ
    return (linears + cache) * 1e3 / gap_ms if gap_ms else None


def metrics_of(port):
    """Name to value, labels left out, of the server's own counters and gauges."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    out = {}
    for line in lines:
        if line.startswith("ekiben_") and "_bucket" not in line:
            name, _, value = line.rpartition(" ")
            out[name.partition("{")[0]] = float(value)
    return out


def between(before, after):
    grown = lambda name: after.get(name, 0) - before.get(name, 0)
    steps = max(grown("ekiben_steps_total"), 1)
    tokens = grown("ekiben_context_tokens_total") + grown("ekiben_generation_tokens_total")
    return {"steps": int(steps), "steps_kernel_by_kernel": int(grown("ekiben_steps_kernel_by_kernel_total")),
            "steps_over_budget": int(grown("ekiben_steps_over_budget_total")),
            "padding_share": round(grown("ekiben_tokens_padded_total") / max(tokens, 1), 4),
            "executor_us_a_step": round(grown("ekiben_steps_host_seconds_total") / steps * 1e6, 1),
            "launch_us_a_step": round(grown("ekiben_steps_launch_seconds_total") / steps * 1e6, 1),
            "preemptions": int(grown("ekiben_preemptions_total"))}


def load_options(load):
    low, prompt, output = load
    return (f"--prompt_tokens_min {low} " if low else "") + f"--prompt_tokens {prompt} --output_tokens {output}"


class Rows:
    def __init__(self, args):
        self.args = args
        self.begin = time.monotonic()
        self.options = " ".join(args.server_options)
        self.dtype = "fp8" if "--dtype fp8" in self.options else "bf16"
        gpu = subprocess.run("nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || true", shell=True,
                             capture_output=True, text=True, check=True).stdout.strip()
        self.out = {"date": datetime.date.today().isoformat(), "commit": args.commit or git_commit(), "gpu": gpu,
                    "command": "bench/gpu_rows.py " + " ".join(sys.argv[1:]), "dtype": self.dtype, "shape": args.shape,
                    "servers": [], "rows": [], "left_out": []}

    def left(self):
        return self.args.budget - (time.monotonic() - self.begin)

    def save(self):
        pathlib.Path(self.args.out).write_text(json.dumps(self.out, indent=1) + "\n")

    def model(self, options, option=""):
        args = self.args
        model = f"{option} {args.model}" if args.model else f"--synth {args.shape}"
        return f"{model} --device {args.device} {self.options} {options}".strip()

    def serve(self, options=""):
        port = free_port()
        return Server(f"{self.args.ekiben} serve {self.model(options)} --host 127.0.0.1 --port {port}", port, "/readyz",
                      self.args.log)

    def started(self, server, options):
        self.out["servers"].append({"command": server.command, "options": options, "ready_s": round(server.ready_s, 2)})
        say(f"ready after {server.ready_s:.1f} s: {server.command}")
        self.save()

    def bench(self, kind, where, load, users, ramp, duration, steady, port=None, name=""):
        """One level. False: there was no time for it."""
        label = f"{kind}{' ' + name if name else ''} {load_options(load)} {users} users"
        if self.left() < ramp + duration + 5:
            self.out["left_out"].append(label)
            say(f"left out: {label}")
            return False
        command = (f"{self.args.ekiben} bench {where} {load_options(load)} --users {users} --ramp {ramp:g} "
                   f"--duration {duration:g} --ignore_eos --json" + (" --steady_start" if steady else ""))
        before = metrics_of(port) if port else None
        report, error = run_json(command, ramp + duration + 300)
        row = {"kind": kind, "name": name, "load": load, "users": users, "command": command}
        self.out["rows"].append(row)
        if error:
            row["error"] = str(error)[-500:]
            say(f"{label}\n{error}")
        else:
            level = report["levels"][0]
            row.update({"tokens_per_s": level["tokens_per_s"], "ttft_ms": level["ttft_ms"],
                        "itl_token_ms": level["itl_token_ms"], "tpot_ms": level.get("tpot_ms"),
                        "requests": level["requests"], "errors": level.get("errors"), "mismatches": level["mismatches"],
                        "client": level["client"]["verdict"]})
            if port:
                row["server"] = between(before, metrics_of(port))
            if self.args.shape == "llama-3-8b":
                row["floor_share"] = floor_share(self.dtype, load, level["tokens_per_s"], level["itl_token_ms"]["mean"])
            say(line_of(self.out, row))
        self.save()
        return True

    def users(self, port):
        for users in self.args.users:
            self.bench("users", f"--url http://127.0.0.1:{port}", ARTICLE, users, self.args.ramp, self.args.duration, False, port)

    def closed(self, port):
        for users in self.args.closed_users:
            ramp = self.args.fill + users * (CLOSED[1] + CLOSED[2] / 2) / self.args.fill_rate
            self.bench("closed", f"--url http://127.0.0.1:{port}", CLOSED, users, ramp, self.args.duration, True, port)

    def max(self, port):
        blocks = metrics_of(port)["ekiben_kv_cache_blocks"]
        for load in self.args.max_loads:
            _, prompt, output = load
            tokens = prompt + output / 2 if "max_utilization" in self.options else prompt + output
            fit = min(self.args.max_batch_size, int(blocks // -(-tokens // 64)))
            # Who waits has no tokens yet, so filling takes what fits.
            ramp = self.args.fill + fit * (prompt + output / 2) / self.args.fill_rate
            users = fit + max(1, fit // 20)
            if self.args.max_users and self.args.max_users < users:
                users = self.args.max_users
                ramp = self.args.fill + users * (prompt + output / 2) / self.args.fill_rate
            self.bench("max", f"--url http://127.0.0.1:{port}", load, users, ramp, self.args.duration, True, port)

    def on_one_server(self, kinds):
        with self.serve() as server:
            self.started(server, "")
            for kind in kinds:
                getattr(self, kind)(server.port)

    def inprocess(self):
        self.bench("inprocess", self.model("", "--in-process"), ARTICLE, 100, self.args.ramp, self.args.duration, False)

    def each_option(self):
        gemm = "fp8" if self.dtype == "fp8" else "bfloat16"
        for name, options in OPTIONS:
            if self.args.only_options and name not in self.args.only_options:
                continue
            options = options.format(gemm=gemm)
            if self.left() < 12 + len(self.args.users) * (self.args.option_ramp + self.args.option_duration):
                self.out["left_out"].append(f"options {name}")
                say(f"left out: options {name}")
                continue
            try:
                with self.serve(options) as server:
                    self.started(server, options)
                    for users in self.args.users:
                        self.bench("options", f"--url http://127.0.0.1:{server.port}", ARTICLE, users, self.args.option_ramp,
                                   self.args.option_duration, True, server.port, name)
            except RuntimeError as error:
                self.out["rows"].append({"kind": "options", "name": name, "options": options, "error": str(error)})
                say(f"options {name}: {error}")
                self.save()


def line_of(report, row):
    target, peer = references(report, row)
    gap, first = row["itl_token_ms"], row["ttft_ms"]
    words = [f"{report['dtype']} {row['kind']} {row['name']}".strip(), f"{row['load'][1]}/{row['load'][2]}", f"{row['users']} users",
             f"{row['tokens_per_s']:.0f} tok/s"]
    if target[0]:
        words.append(f"(target {target[0]}: {100 * row['tokens_per_s'] / target[0]:.0f} %)")
    if peer[0]:
        words.append(f"(vLLM {peer[0]}: {row['tokens_per_s'] / peer[0]:.2f} x)")
    words.append(f"first {first['p50']:.1f}/{first['p99']:.1f} ms, a token {(row['tpot_ms'] or {}).get('p50', 0):.2f}, gap "
                 f"{gap['p50']:.2f}/{gap['p99']:.2f}")
    if row.get("floor_share"):
        words.append(f"floor {100 * row['floor_share']:.0f} %")
    if row["requests"]["failed"] or row["mismatches"]["output_length"]:
        words.append(f"FAILED {row['requests']['failed']} LENGTH {row['mismatches']['output_length']}")
    return " ".join(words)


def cell(value, other, spell):
    """A measured value, then in brackets what stands beside it."""
    beside = "; ".join(spell.format(v) for v in other if v is not None)
    return spell.format(value) + (f" ({beside})" if beside else "")


def markdown(paths):
    head = ["row", "tok/s (target; vLLM)", "first token p50 ms", "p99", "time a token p50 ms", "gap p99 / p50", "share of floor"]
    tables = {}
    for path in paths:
        report = json.loads(pathlib.Path(path).read_text())
        dtype = report["dtype"]
        for row in report["rows"]:
            if "error" in row:
                continue
            target, peer = references(report, row)
            gap, first, low = row["itl_token_ms"], row["ttft_ms"], row["load"][0]
            name = f"{low} to " if low else ""
            ratio = gap["p99"] / gap["p50"] if gap["p50"] else 0
            tables.setdefault(row["kind"], []).append([
                f"{dtype}{', ' + row['name'] if row['name'] else ''}, {name}{row['load'][1]:,} in, {row['load'][2]:,} out, "
                f"{row['users']:,} users",
                cell(row["tokens_per_s"], (target[0], peer[0]), "{:,.0f}"), cell(first["p50"], (target[1], peer[1]), "{:.1f}"),
                cell(first["p99"], (target[2], peer[2]), "{:.1f}"),
                cell((row["tpot_ms"] or {}).get("p50", 0), (target[3], peer[3]), "{:.2f}"),
                f"{gap['p99']:.1f} / {gap['p50']:.1f} = " + cell(ratio, (target[4],), "{:.2f}"),
                f"{100 * row['floor_share']:.0f} %" if row.get("floor_share") else ""])
        print(f"`{pathlib.Path(path).name}`: {report['gpu']}, built from {report['commit']}; `{report['command']}`.")
    for kind, rows in tables.items():
        print(f"\n{kind}:\n")
        for row in [head, ["---"] * len(head)] + rows:
            print("| " + " | ".join(row) + " |")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", nargs="+", metavar="JSON", help="print the tables of these results and do nothing else")
    parser.add_argument("--out")
    parser.add_argument("--rows", default="users,closed,max,inprocess")
    parser.add_argument("--ekiben", default=str(ROOT / "build/release/ekiben"))
    parser.add_argument("--shape", help="default llama-3-8b; with --model: what it has the shape of, for targets and floors")
    parser.add_argument("--model", help="an engine or checkpoint instead of random weights of --shape")
    parser.add_argument("--device", default="cuda", help="cpu or fake: to try the script where there is no GPU")
    parser.add_argument("--max_users", type=int, default=0, help="max: at most so many instead of what fits and a few more")
    parser.add_argument("--max_batch_size", type=int, default=1024, help="of the server: bounds the users of the rows max")
    parser.add_argument("--users", default=USERS, type=lambda text: [int(n) for n in text.split(",")], help="users, options: levels")
    parser.add_argument("--only_options", default=[], type=lambda text: text.split(","), metavar="NAME,...",
                        help="options: only the rows of these names")
    parser.add_argument("--closed_users", default=CLOSED_USERS, type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--max_loads", default=MAX, metavar="IN/OUT,...",
                        type=lambda text: [(0, *map(int, load.split("/"))) for load in text.split(",")])
    parser.add_argument("--ramp", type=float, default=4, help="seconds over which users arrive")
    parser.add_argument("--duration", type=float, default=10, help="seconds of a window")
    parser.add_argument("--fill", type=float, default=2, help="closed, max: seconds of the ramp beside what prompts take")
    parser.add_argument("--fill_rate", type=float, default=30000, help="closed, max: context tokens a second while filling")
    parser.add_argument("--option_ramp", type=float, default=1.5)
    parser.add_argument("--option_duration", type=float, default=4.5)
    parser.add_argument("--budget", type=float, default=900, help="seconds in all: rows that do not fit are left out")
    parser.add_argument("--commit", help="where the script does not stand in a checkout")
    parser.add_argument("--log", default="/dev/null")
    parser.add_argument("server_options", nargs="*")
    args = parser.parse_args()
    args.shape = args.shape or ("" if args.model else "llama-3-8b")
    if not args.markdown and not args.out:
        parser.error("--out or --markdown")
    return args


def main():
    args = parse()
    if args.markdown:
        return markdown(args.markdown)
    rows, kinds = Rows(args), args.rows.split(",")
    unknown = set(kinds) - {"users", "closed", "max", "inprocess", "options"}
    if unknown:
        sys.exit(f"--rows: {', '.join(unknown)}: not one of users, closed, max, inprocess, options")
    served = [kind for kind in kinds if kind in ("users", "closed", "max")]
    if served:
        rows.on_one_server(served)
    if "inprocess" in kinds:
        rows.inprocess()
    if "options" in kinds:
        rows.each_option()
    rows.save()
    return 0


if __name__ == "__main__":
    sys.exit(main())
