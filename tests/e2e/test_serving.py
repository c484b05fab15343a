"""A real server under people who leave, crowds, and SIGTERM. Needs EKIBEN_PROGRAM and EKIBEN_TEST_MODEL; starts its own
servers. EKIBEN_DISCONNECTS (default 1,000; the acceptance run uses 10,000) sets the number of clients that leave."""
import concurrent.futures
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

PROGRAM = os.environ["EKIBEN_PROGRAM"]
MODEL = os.environ["EKIBEN_TEST_MODEL"]
DISCONNECTS = int(os.environ.get("EKIBEN_DISCONNECTS", "1000"))
# How much longer than usual things may take: the server may be built with a sanitizer (tools/run_tests.py).
SCALE = int(os.environ.get("EKIBEN_TIME_SCALE", "1"))
LIMITS = [] if SCALE == 1 else ["--traffic.timeout", str(60 * SCALE), "--drain_timeout", str(30 * SCALE)]


class Server:
    def __init__(self, *options):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen([PROGRAM, "serve", MODEL, "--host", "127.0.0.1", "--port", str(self.port),
                                         "--served_model_name", "m", *LIMITS, *map(str, options)],
                                        stdout=self.log, stderr=self.log)
        for _ in range(1200 * SCALE):
            if self.process.poll() is not None:
                raise RuntimeError(open(self.log.name).read())
            try:
                if self.get("/readyz")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise RuntimeError("not ready")

    def get(self, path):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10 * SCALE)
        c.request("GET", path)
        r = c.getresponse()
        body = r.read()
        c.close()
        return r.status, body.decode()

    def metric(self, name):
        total = 0.0
        for line in self.get("/metrics")[1].split("\n"):
            if re.match(rf"{name}(\{{[^}}]*\}})? ", line):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def rss_kib(self):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("VmRSS"):
                return int(line.split()[1])

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60 * SCALE)


def stream_request(port, prompt, max_tokens):
    """The whole body of a streamed completion, read to the end of the chunked answer."""
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=120 * SCALE)
    body = json.dumps({"model": "m", "prompt": prompt, "max_tokens": max_tokens, "stream": True, "ignore_eos": True,
                       "temperature": 0})
    c.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    r = c.getresponse()
    text = r.read().decode()
    c.close()
    return r.status, text


def leave_in_mid_stream(port, i):
    s = socket.create_connection(("127.0.0.1", port), timeout=60 * SCALE)
    body = json.dumps({"model": "m", "prompt": f"Story number {i}:", "max_tokens": 500, "stream": True,
                       "ignore_eos": True}).encode()
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
              % len(body) + body)
    if i % 4:  # three of four have read something before they leave
        s.recv(4096)
    s.close()


class Serving(unittest.TestCase):
    def test_sigterm_under_50_streams_breaks_none(self):
        server = Server("--max_batch_size", 64)
        results, started = [], threading.Barrier(51)

        def user(i):
            started.wait()
            results.append(stream_request(server.port, f"A tale of {i}:", 48))

        threads = [threading.Thread(target=user, args=(i,)) for i in range(50)]
        for t in threads:
            t.start()
        started.wait()
        time.sleep(1.0)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        for t in threads:
            t.join()
        self.assertEqual(server.process.wait(timeout=60 * SCALE), 0)
        self.assertEqual(len(results), 50)
        for status, text in results:
            if status == 200:
                self.assertTrue(text.endswith("data: [DONE]\n\n"), text[-200:])
                self.assertNotIn('"error"', text)
            else:  # arrived after the signal: refused whole, not broken
                self.assertEqual(status, 503)
        self.assertGreaterEqual(sum(1 for status, _ in results if status == 200), 45)

    def test_clients_that_leave_give_everything_back(self):
        server = Server("--max_batch_size", 32, "--max_tokens_in_paged_kv_cache", 16384)
        try:
            with concurrent.futures.ThreadPoolExecutor(24) as pool:
                list(pool.map(lambda i: leave_in_mid_stream(server.port, i), range(min(200, DISCONNECTS))))
            time.sleep(1)
            before = server.rss_kib()
            with concurrent.futures.ThreadPoolExecutor(24) as pool:
                list(pool.map(lambda i: leave_in_mid_stream(server.port, i), range(DISCONNECTS)))
            end = time.monotonic() + 20 * SCALE
            while time.monotonic() < end and server.metric("ekiben_requests_running") > 0:
                time.sleep(0.1)
            self.assertEqual(server.metric("ekiben_requests_running"), 0)
            self.assertEqual(server.metric("ekiben_requests_waiting"), 0)
            self.assertEqual(server.metric("ekiben_kv_cache_usage_ratio"), 0)
            grown = server.rss_kib() - before
            print(f"{DISCONNECTS} disconnects, RSS {before} KiB, grown by {grown} KiB", file=sys.stderr)
            self.assertLess(grown, 64 * 1024)
            self.assertEqual(stream_request(server.port, "Still here?", 4)[0], 200)
        finally:
            server.stop()

    def test_same_seed_same_text_alone_and_in_a_crowd(self):
        server = Server("--max_batch_size", 32)
        try:
            def ask(i):
                c = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120 * SCALE)
                body = {"model": "m", "prompt": f"Once upon a time number {i % 5}", "max_tokens": 24, "seed": i,
                        "temperature": 0.9 if i % 2 else 0, "top_p": 0.95}
                c.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
                return json.loads(c.getresponse().read())["choices"][0]["text"]

            alone = [ask(i) for i in range(20)]
            with concurrent.futures.ThreadPoolExecutor(20) as pool:
                together = list(pool.map(ask, range(20)))
            self.assertEqual(alone, together)
        finally:
            server.stop()

    def test_ready_within_two_seconds_of_a_built_engine(self):
        begin = time.monotonic()
        server = Server()
        seconds = time.monotonic() - begin
        server.stop()
        print(f"ready in {seconds:.2f} s", file=sys.stderr)
        self.assertLess(seconds, 5 * SCALE)  # 2 s on a quiet machine; the benchmark says the number

    def test_a_full_queue_is_answered_429(self):
        server = Server("--max_batch_size", 1, "--max_queue_size", 2)
        try:
            with concurrent.futures.ThreadPoolExecutor(12) as pool:
                answers = list(pool.map(lambda i: stream_request(server.port, f"{i}", 64), range(12)))
            codes = [status for status, _ in answers]
            self.assertIn(429, codes)
            self.assertIn(200, codes)
            self.assertTrue(all(c in (200, 429) for c in codes), codes)
        finally:
            server.stop()

