import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import time

import httpx
import openai
import pytest

URL = os.environ.get("EKIBEN_URL", "http://127.0.0.1:3000").rstrip("/")
GRPC = os.environ.get("EKIBEN_GRPC", "127.0.0.1:8001")
HAS_GRPC = "--grpc_port" in subprocess.run([os.environ.get("EKIBEN_PROGRAM", "true"), "serve", "--help"],
                                           capture_output=True, text=True).stdout
SCALE = int(os.environ.get("EKIBEN_TIME_SCALE", "1"))  # the server may be built with a sanitizer
# Such a server has two of the model's layers, which write blanks for ever where a grammar lets them.
whole_model = pytest.mark.skipif(SCALE > 1, reason="wants a model that ends its JSON")


def pytest_collection_modifyitems(items):
    """A build without gRPC (EKIBEN_GRPC=off), or a server without KServe's routes or BentoML's metrics, is not asked for
    them; the run counts what it skipped."""
    def missing(answers, reason):
        return None if answers else pytest.mark.skip(reason=reason)

    grpc = missing(HAS_GRPC or "EKIBEN_PROGRAM" not in os.environ, "this build has no gRPC")
    try:
        v2 = missing(httpx.get(URL + "/v2", timeout=60).status_code == 200, "this server has no /v2")
        bento = missing("bentoml_service_" in httpx.get(URL + "/metrics", timeout=60).text, "no bentoml_service_* metrics")
    except httpx.TransportError as error:
        pytest.exit(f"no server at {URL}: {error}")
    checks = tuple(f"test_{n:02}_" for n in range(9, 13)) + ("test_20_", "test_good_streams")
    for item in items:
        stem, name = item.path.stem, item.originalname
        wants_v2 = stem == "test_triton_http" or stem == "test_cancels" or name.startswith("test_triton_") or \
            stem == "test_acceptance" and name.startswith(checks)
        wants_grpc = stem in ("test_triton_grpc", "test_triton_grpc_aio", "test_article_service", "test_cancels") or \
            name.startswith("test_13_")
        wants_bento = name.startswith(("test_02_multipart", "test_07_", "test_20_"))
        for mark in (v2 if wants_v2 else None, grpc if wants_grpc else None, bento if wants_bento else None):
            if mark is not None:
                item.add_marker(mark)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Metrics:
    """A server's /metrics, asked again at every use."""

    def __init__(self, url):
        self.url = url

    def samples(self, name, **labels):
        text = httpx.get(self.url + "/metrics", timeout=60).text
        for line in text.splitlines():
            match = re.match(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)$", line)
            if match:
                found = dict(re.findall(r'([^=,]+)="((?:[^"\\]|\\.)*)"', match.group(1) or ""))
                if all(found.get(k) == v for k, v in labels.items()):
                    yield found, float(match.group(2))

    def value(self, name, **labels):
        """The sum of the samples that have these labels; a family that is not there fails."""
        values = [value for _, value in self.samples(name, **labels)]
        assert values, f"no sample of {name} with {labels}"
        return sum(values)

    def wait_for(self, name, wanted, seconds=30, **labels):
        end = time.monotonic() + seconds * SCALE
        while (now := self.value(name, **labels)) != wanted:
            assert time.monotonic() < end, f"{name}{labels} is {now} after {seconds} s, not {wanted}"
            time.sleep(0.02)


class Served:
    """A server of a test's own, from the same program and model as the suite's."""

    def __init__(self, options, log):
        self.port, self.grpc_port = free_port(), free_port()
        self.url, self.grpc, self.log = f"http://127.0.0.1:{self.port}", f"127.0.0.1:{self.grpc_port}", log
        self.metrics = Metrics(self.url)
        self.process = subprocess.Popen(
            [os.environ["EKIBEN_PROGRAM"], "serve", os.environ["EKIBEN_TEST_MODEL"], "--host", "127.0.0.1", "--port",
             str(self.port), *(["--grpc_port", str(self.grpc_port)] if HAS_GRPC else []), "--served_model_name", "m", *map(str, options)],
            stdout=log, stderr=log)

    def wait_ready(self):
        end = time.monotonic() + 60 * SCALE
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.url + "/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.05)
        self.log.seek(0)
        raise RuntimeError(f"the server did not come up:\n{self.log.read()[-4000:]}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60 * SCALE)


@contextlib.contextmanager
def served(*options):
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        server = Served(options, log)
        try:
            server.wait_ready()
            yield server
        finally:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()


@pytest.fixture(scope="session")
def start_server():
    """`with start_server("--option", value) as server:` for what needs options that the suite's server has not."""
    if "EKIBEN_PROGRAM" not in os.environ or "EKIBEN_TEST_MODEL" not in os.environ:
        pytest.skip("EKIBEN_PROGRAM and EKIBEN_TEST_MODEL name the server to start")
    return served


@pytest.fixture(scope="session")
def url():
    return URL


@pytest.fixture(scope="session")
def grpc_address():
    return GRPC


@pytest.fixture(scope="session")
def metrics():
    return Metrics(URL)


@pytest.fixture(scope="session")
def http():
    with httpx.Client(base_url=URL, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def client():
    key = os.environ.get("EKIBEN_API_KEY", "EMPTY")
    return openai.OpenAI(base_url=URL + "/v1", api_key=key, max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id
