"""The product API that the system replaced was reached through: a BentoML service that talks to `ensemble` over
ModelStreamInfer (article/service.py), run by the real `bentoml serve` in front of our gRPC port. The same HTTP request gives
the same text there and on our own /generate. This is acceptance check 14."""
import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import time

import bentoml
import httpx
import pytest
import tritonclient.grpc.aio as triton

from conftest import SCALE, free_port
from triton_text import text_inputs

FOLDER = pathlib.Path(__file__).resolve().parent / "article"
SYSTEM = "You answer travellers in a few words."


@pytest.fixture(scope="module")
def template(http):
    """The model's own chat template, as such a service wrote it down by hand."""
    parts = [{"role": "system", "content": "{system_prompt}"}, {"role": "user", "content": "{user_prompt}"}]
    tokens = http.post("/tokenize", json={"messages": parts, "add_generation_prompt": True}).json()["tokens"]
    return http.post("/detokenize", json={"tokens": tokens}).json()["prompt"]


@pytest.fixture(scope="module")
def service(grpc_address, template, tmp_path_factory):
    """The URL of the service in front of ours."""
    home = tmp_path_factory.mktemp("bentoml")
    port = free_port()
    log = open(home / "log", "w+")
    environment = {**os.environ, "TRITON_GRPC": grpc_address, "PROMPT_TEMPLATE": template, "SYSTEM_PROMPT": SYSTEM,
                   "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "NO_COLOR": "1"}
    process = subprocess.Popen([sys.executable, "-m", "bentoml", "serve", "service:ArticleService", "--host", "127.0.0.1",
                                "--port", str(port)], cwd=FOLDER, env=environment, stdout=log, stderr=log,
                               start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120 * SCALE
        while True:
            try:
                if httpx.get(url + "/readyz", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None or time.monotonic() > end:
                log.seek(0)
                raise RuntimeError("bentoml serve did not come up:\n" + log.read()[-4000:])
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def whole(url, body):
    with httpx.stream("POST", url + "/generate", json=body, timeout=300) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["server"].startswith("BentoML Service/")
        return b"".join(response.iter_raw()).decode()


LONG = "Write a very long story about trains, at least ten chapters."  # the default model takes all the tokens it is given
BODIES = [{"prompt": "When does the last train leave?", "system_prompt": SYSTEM, "max_tokens": 128},
          {"prompt": "Say ekiben in Japanese: 駅弁 🍱", "system_prompt": "", "max_tokens": 128},
          {"prompt": "Tell a long story about a station.", "system_prompt": "Be wordy.", "max_tokens": 200}]


@pytest.mark.parametrize("body", BODIES, ids=["plain", "unicode-no-system", "long"])
def test_14_same_request_same_text(service, url, body):
    theirs, ours = whole(service, body), whole(url, body)
    assert theirs == ours and ours


def test_14_by_the_bentoml_client(service, url):
    texts = []
    for address in (service, url):
        with bentoml.SyncHTTPClient(address) as client:
            texts.append("".join(client.generate(**BODIES[0])))
    assert texts[0] == texts[1]


def test_14_users_at_once(service, url):
    body = lambda i: {"prompt": f"Train number {i}?", "system_prompt": SYSTEM, "max_tokens": 128}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: whole(service, body(i)), range(8)))
    assert together[3] == whole(url, body(3)) and together[7] == whole(url, body(7))


def test_14_same_refusals(service, url):
    for bad in ({"max_tokens": 127}, {"max_tokens": 1025}, {"max_tokens": 300.5}, {"prompt": None}, {"max_tokens": "abc"}):
        theirs, ours = (httpx.post(address + "/generate", json=bad) for address in (service, url))
        assert theirs.status_code == ours.status_code == 400
        kinds = [[(d["type"], d["loc"], d["msg"]) for d in answer.json()["detail"]] for answer in (theirs, ours)]
        assert kinds[0] == kinds[1] and theirs.json()["error"] == ours.json()["error"]


def test_14_leaving_the_service_frees_our_slot(service, metrics):
    """The client leaves the product API; it drops its stream of ours, and what ran for it ends."""
    with httpx.stream("POST", service + "/generate", json={"prompt": LONG, "max_tokens": 1024}, timeout=60) as left:
        chunks = left.iter_raw()
        next(chunks)
        metrics.wait_for("ekiben_requests_running", 1)
    metrics.wait_for("ekiben_requests_running", 0, seconds=60)
    metrics.wait_for("ekiben_kv_cache_usage_ratio", 0)


def test_14_error_shape(grpc_address):
    """What such a service reads from each message: `text_output` is one-dimensional, an error comes in the stream."""
    import asyncio

    async def requests(max_tokens):
        yield {"model_name": "ensemble", "request_id": "1",
               "inputs": text_inputs(triton, "The train", max_tokens, stream=True, temperature=0.0),
               "outputs": [triton.InferRequestedOutput("text_output")]}

    async def work():
        async with triton.InferenceServerClient(grpc_address) as client:
            shapes = [r.as_numpy("text_output").shape async for r, e in client.stream_infer(requests(4)) if e is None]
            errors = [e async for r, e in client.stream_infer(requests(0)) if e is not None]
            return shapes, errors

    shapes, errors = asyncio.run(work())
    assert set(shapes) == {(1,)} and len(errors) == 1 and "max_tokens" in errors[0].message()
