#!/usr/bin/env python3
"""What the edge costs and stands: HTTP, JSON, server-sent events and the threads between them, over a device that computes nothing.

  bench/edge_speed.py --model MODEL.gguf --out bench/results/edge_speed.json         # 2 cores: about a minute
  bench/edge_speed.py --model MODEL.gguf --server_cpus 0-7 --client_cpus 8-15 --load_threads 4 --out ...

Rows (`--rows`), each a server of its own with `--device fake`:
  unbounded  100 streams, steps take no time: what the whole chain gives when nothing else limits it
  paced      2,000 streams, a step every 25 ms, so up to 80,000 tokens a second, each a send of its own: the cost of a token
             when the socket is never behind
  first      100 streams, steps of 10 ms: the time to the first token over HTTP minus the same in process, so what
             connection, parsing, JSON and sending add
  tls        new connections a second over TLS 1.3, each with its handshake, by openssl s_time
  grpc       ModelStreamInfer by bench/grpc_load.cc (build/release/bench/grpc_load): `unbounded` as above on 4 connections;
             `paced`, 500 streams with a step every 25 ms, each on a connection of its own, so that every token is a send;
             `paced_4_connections`, the same where one send may carry several streams' tokens. A token is a message in all of
             them. libgrpc++ writes on whichever thread calls it, so a core's tokens are counted over all of the server's
             threads but the executor's
For each: tokens a second, and what they cost in CPU of the server's I/O threads and of its postprocessing, from
/proc: tokens a second of one core of I/O is their number over the I/O threads' CPU seconds. The client's share of the
machine stands beside it, since on few cores it takes from the server. Only the standard library and openssl are used; `grpc` needs its client built.
"""
import argparse
import datetime
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench/peers"))
from compare_llama import Server, free_port, git_commit, machine, run_json, say  # noqa: E402


def pinned(cpus, command):
    return f"taskset -c {cpus} {command}" if cpus else command


def threads(pid):
    """CPU seconds and voluntary context switches by thread name."""
    tick, out = os.sysconf("SC_CLK_TCK"), {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        waits = int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.M)[1])
        entry = out.setdefault((task / "comm").read_text().strip(), {"cpu_s": 0.0, "waits": 0})
        entry["cpu_s"] += (int(fields[11]) + int(fields[12])) / tick
        entry["waits"] += waits
    return out


def counters(port, names):
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    return {name: sum(float(line.rpartition(" ")[2]) for line in text.splitlines()
                      if re.match(rf"{name}(_total)?[{{ ]", line)) for name in names}


COUNTERS = ("ekiben_generation_tokens", "ekiben_http_sends", "ekiben_http_bytes_sent", "ekiben_postprocessing_stalls")


def serve_command(args, port, step_ms, more=""):
    return pinned(args.server_cpus, f"{args.ekiben} serve {args.model} --device fake --fake_step_ms {step_ms} --port {port} "
                                    f"--io_threads {args.io_threads} --max_batch_size 2048 --max_num_tokens 8192 "
                                    f"--postprocessing_instance_count {args.postprocessing} {more}".strip())


def bench_command(args, where, users, output_tokens):
    return pinned(args.client_cpus,
                  f"{args.ekiben} bench {where} --users {users} --ramp {args.ramp} --duration {args.duration} --prompt_tokens 30 "
                  f"--output_tokens {output_tokens} --ignore_eos --load_threads {args.load_threads} --seed 7 --json")


def run_level(args, command):
    report, error = run_json(command, args.ramp + args.duration + 120)
    if error:
        raise SystemExit(f"{command}\n{error}")
    level = report["levels"][0]
    if level["requests"]["failed"] or level["mismatches"]["output_length"]:
        raise SystemExit(f"{command}\nfailed or short answers: {level['requests']} {level['mismatches']}")
    return {"command": command, "tokens_per_s": level["tokens_per_s"], "ttft_ms": level["ttft_ms"],
            "itl_token_ms": level["itl_token_ms"], "client_cores": level["client"]["cpu_share"]}


def streamed(args, users, output_tokens, step_ms):
    port = free_port()
    command = serve_command(args, port, step_ms)
    with Server(command, port, "/readyz", args.log) as server:
        before, began = threads(server.process.pid), counters(port, COUNTERS)
        row = run_level(args, bench_command(args, f"--url http://127.0.0.1:{port}", users, output_tokens))
        after, ended = threads(server.process.pid), counters(port, COUNTERS)
    spent = {name: {key: after[name][key] - before.get(name, {}).get(key, 0) for key in after[name]} for name in after}
    made = {name: ended[name] - began[name] for name in COUNTERS}
    tokens = made["ekiben_generation_tokens"]
    io, post = spent["http io"]["cpu_s"], spent["postprocessing"]["cpu_s"]
    row.update(users=users, step_ms=step_ms, server_command=command, tokens_total=tokens,
               tokens_per_io_core_s=tokens / io, io_us_per_token=1e6 * io / tokens,
               tokens_per_io_and_postprocessing_core_s=tokens / (io + post), postprocessing_us_per_token=1e6 * post / tokens,
               tokens_per_send=tokens / made["ekiben_http_sends"], bytes_per_token=made["ekiben_http_bytes_sent"] / tokens,
               stalls=made["ekiben_postprocessing_stalls"], threads=spent)
    say(f"{users} streams, step {step_ms} ms: {row['tokens_per_s']:,.0f} tok/s, {row['tokens_per_io_core_s']:,.0f} a core of I/O, "
        f"{row['tokens_per_io_and_postprocessing_core_s']:,.0f} with postprocessing; {row['tokens_per_send']:.1f} tokens a send; "
        f"TTFT p99 {row['ttft_ms']['p99']} ms; client {row['client_cores']:.2f} cores")
    return row


def first_token(args):
    """Pairs that take turns; the overhead is p99 over HTTP minus p99 in process."""
    users, output, step = 100, 64, 10
    pairs = []
    for turn in range(args.pairs):
        pair = {}
        for kind in (("http", "in_process") if turn % 2 == 0 else ("in_process", "http")):
            if kind == "http":
                port = free_port()
                with Server(serve_command(args, port, step), port, "/readyz", args.log):
                    pair[kind] = run_level(args, bench_command(args, f"--url http://127.0.0.1:{port}", users, output))
            else:
                where = (f"--in-process {args.model} --device fake --fake_step_ms {step} --max_batch_size 2048 "
                         f"--max_num_tokens 8192 --postprocessing_instance_count {args.postprocessing}")
                pair[kind] = run_level(args, bench_command(args, where, users, output))
        pair["added_ms"] = {p: pair["http"]["ttft_ms"][p] - pair["in_process"]["ttft_ms"][p] for p in ("p50", "p99")}
        say(f"first token, 100 streams: HTTP p50 {pair['http']['ttft_ms']['p50']} p99 {pair['http']['ttft_ms']['p99']}, in process "
            f"{pair['in_process']['ttft_ms']['p50']} {pair['in_process']['ttft_ms']['p99']} ms")
        pairs.append(pair)
    return pairs


def handshakes(args):
    """New connections a second over loopback, by one openssl s_time: full handshakes, then resumed ones."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
                        "-subj", "/CN=localhost", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"],
                       check=True, capture_output=True)
        port = free_port()
        command = serve_command(args, port, 0, f"--ssl_certfile {folder}/cert.pem --ssl_keyfile {folder}/key.pem")
        out = {"server_command": command}
        with TlsServer(command, port, "/readyz", args.log) as server:
            for kind, flag in (("full", "-new"), ("resumed", "-reuse")):
                before = threads(server.process.pid)["http io"]["cpu_s"]
                run = pinned(args.client_cpus, f"openssl s_time -connect 127.0.0.1:{port} {flag} -time 3 -www /ping")
                text = subprocess.run(shlex.split(run), capture_output=True, text=True, timeout=60).stdout
                count = int(re.search(r"(\d+) connections in", text)[1])
                io = threads(server.process.pid)["http io"]["cpu_s"] - before
                out[kind] = {"command": run, "connections": count, "real_s": 3, "io_us_per_connection": 1e6 * io / count}
                say(f"TLS 1.3 connections, {kind}: {count / 3:,.0f} a second, {out[kind]['io_us_per_connection']:.0f} us of I/O each")
    return out


GRPC_ROWS = {"unbounded": (100, 4, 256, 0), "paced": (500, 500, 96, 25), "paced_4_connections": (500, 4, 96, 25)}


def over_grpc(args, streams, connections, output_tokens, step_ms):
    port, grpc_port = free_port(), free_port()
    command = serve_command(args, port, step_ms, f"--grpc_port {grpc_port}")
    client = pinned(args.client_cpus, f"{args.grpc_load} --target 127.0.0.1:{grpc_port} --streams {streams} --connections "
                                      f"{connections} --output_tokens {output_tokens} --ramp {args.ramp} --duration {args.duration}")
    with Server(command, port, "/readyz", args.log) as server:
        before, began = threads(server.process.pid), counters(port, COUNTERS[:1])
        row, error = run_json(client, args.ramp + args.duration + 180)
        after, ended = threads(server.process.pid), counters(port, COUNTERS[:1])
    if error:
        raise SystemExit(f"{client}\n{error}")
    spent = {name: after[name]["cpu_s"] - before.get(name, {"cpu_s": 0})["cpu_s"] for name in after}
    edge, messages = sum(spent.values()) - spent["executor"], row["messages_total"]
    tokens = ended["ekiben_generation_tokens"] - began["ekiben_generation_tokens"]  # without each request's first
    row.update(command=client, server_command=command, streams=streams, connections=connections, step_ms=step_ms,
               generation_tokens=tokens, tokens_per_core_s=messages / edge, us_per_token=1e6 * edge / messages,
               tokens_per_whole_server_core_s=messages / sum(spent.values()),
               client_share_of_cpu=row["client_cpu_s"] / (row["client_cpu_s"] + sum(spent.values())), threads_cpu_s=spent)
    if messages < 0.99 * tokens or messages > tokens + row["requests"]:
        raise SystemExit(f"{client}\n{messages} messages for {tokens} tokens and {row['requests']} requests")
    say(f"gRPC, {streams} streams on {connections} connections, step {step_ms} ms: {row['messages_per_s']:,.0f} tok/s, "
        f"{row['tokens_per_core_s']:,.0f} a core without the executor, {row['tokens_per_whole_server_core_s']:,.0f} with it; "
        f"client {100 * row['client_share_of_cpu']:.0f}% of the CPU time")
    return row


class TlsServer(Server):
    """Ready when its port takes a connection: the certificate is nobody's."""

    def __enter__(self):
        out = open(self.log, "a")
        begin = out.tell()
        self.process = subprocess.Popen(shlex.split(self.command), stdout=out, stderr=out, start_new_session=True)
        for _ in range(600):
            if b"ready in" in pathlib.Path(self.log).read_bytes()[begin:]:
                return self
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.command}: exit {self.process.returncode}; see {self.log}")
            time.sleep(0.1)
        raise RuntimeError(f"{self.command}: not ready; see {self.log}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ekiben", default="build/release/ekiben")
    parser.add_argument("--grpc_load", default="build/release/bench/grpc_load")
    parser.add_argument("--model", required=True, help="checkpoint or engine: its tokenizer is what counts")
    parser.add_argument("--out", required=True)
    parser.add_argument("--rows", default="unbounded,paced,first,tls,grpc")
    parser.add_argument("--ramp", type=float, default=2)
    parser.add_argument("--duration", type=float, default=6)
    parser.add_argument("--pairs", type=int, default=3, help="of the row `first`")
    parser.add_argument("--io_threads", type=int, default=1)
    parser.add_argument("--postprocessing", type=int, default=1)
    parser.add_argument("--load_threads", type=int, default=0)
    parser.add_argument("--server_cpus", default="", help="as taskset -c reads them")
    parser.add_argument("--client_cpus", default="")
    parser.add_argument("--log", default="/tmp/edge_speed.log")
    args = parser.parse_args()
    pathlib.Path(args.log).write_text("")
    report = {"schema": "ekiben.edge_speed", "schema_version": 1,
              "started_utc": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
              "command": shlex.join([str(pathlib.Path(sys.argv[0])), *sys.argv[1:]]), "commit": git_commit(),
              "machine": machine(), "rows": {}}
    rows = args.rows.split(",")
    if "unbounded" in rows:
        report["rows"]["unbounded"] = streamed(args, 100, 256, 0)
    if "paced" in rows:
        report["rows"]["paced"] = streamed(args, 2000, 96, 25)
    if "first" in rows:
        report["rows"]["first"] = first_token(args)
    if "tls" in rows:
        report["rows"]["tls_connections"] = handshakes(args)
    if "grpc" in rows:
        report["rows"]["grpc"] = {name: over_grpc(args, *row) for name, row in GRPC_ROWS.items()}
    pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(args.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
