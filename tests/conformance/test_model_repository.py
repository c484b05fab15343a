"""`serve --model_repository` under tritonclient: an existing deployment's folders, explicit control over both wires, a folder
that changes while a stream runs. Starts its own servers; the models are links to the suite's model file."""
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time

import httpx
import numpy
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from conftest import HAS_GRPC, SCALE, free_port

pytestmark = pytest.mark.skipif("EKIBEN_TEST_MODEL" not in os.environ or "EKIBEN_PROGRAM" not in os.environ,
                                reason="EKIBEN_PROGRAM and EKIBEN_TEST_MODEL name the server to start")
PARTS = ["ensemble", "preprocessing", "postprocessing", "tensorrt_llm_bls"]


def add_model(root, name, config=""):
    """In one step, as a deployment should: a folder appears whole."""
    made = root / f".{name}"
    (made / "1").mkdir(parents=True)
    os.symlink(os.path.abspath(os.environ["EKIBEN_TEST_MODEL"]), made / "1" / "model.gguf")
    (made / "config.pbtxt").write_text(config or f'name: "{name}"\nbackend: "ekiben"  # ours\n')
    made.rename(root / name)


@contextlib.contextmanager
def serving(root, *options):
    port, grpc_port = free_port(), free_port()
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        process = subprocess.Popen(
            [os.environ["EKIBEN_PROGRAM"], "serve", "--model_repository", str(root), "--port", str(port),
             *(["--grpc_port", str(grpc_port)] if HAS_GRPC else []), "--max_tokens_in_paged_kv_cache", "16384", *options],
            stdout=log, stderr=log)
        try:
            end = time.monotonic() + 60 * SCALE
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{port}/livez", timeout=5).status_code == 200:
                        break
                assert time.monotonic() < end and process.poll() is None, open(log.name).read()[-4000:]
                time.sleep(0.05)
            yield port, grpc_port
        finally:
            process.terminate()
            assert process.wait(timeout=60 * SCALE) == 0, open(log.name).read()[-4000:]


def index(client):
    return {model["name"]: model for model in client.get_model_repository_index()}


def wait_for(what):
    end = time.monotonic() + 60 * SCALE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def answer(port, model):
    response = httpx.post(f"http://127.0.0.1:{port}/v2/models/{model}/generate",
                          json={"text_input": "Once upon", "max_tokens": 4}, timeout=60 * SCALE)
    return response.json().get("text_output", "")


def test_a_deployments_folders_are_one_engine(tmp_path):
    for part in PARTS:
        (tmp_path / part / "1").mkdir(parents=True)
        kind = 'platform: "ensemble"' if part == "ensemble" else 'backend: "python"'
        (tmp_path / part / "config.pbtxt").write_text(f'name: "{part}"\n{kind}\nmax_batch_size: 8\n')
    add_model(tmp_path, "another")
    (tmp_path / "tensorrt_llm" / "1").mkdir(parents=True)
    (tmp_path / "tensorrt_llm" / "config.pbtxt").write_text(
        'name: "tensorrt_llm" backend: "tensorrtllm"\nmodel_transaction_policy { decoupled: True }\n'
        'parameters: {\n  key: "gpt_model_path"\n  value: { string_value: "../another/1/model.gguf" }\n}\n')
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "config.pbtxt").write_text('backend: "onnxruntime"')
    with serving(tmp_path) as (port, _):
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}") as client:
            models = index(client)
            assert all(models[name]["state"] == "READY" for name in [*PARTS, "tensorrt_llm", "another"])
            assert models["wrong"]["state"] == "UNAVAILABLE" and "onnxruntime" in models["wrong"]["reason"]
            assert len(models) == len(client.get_model_repository_index())
            assert client.is_model_ready("ensemble") and not client.is_model_ready("wrong")
            text = tritonclient.http.InferInput("text_input", [1, 1], "BYTES")
            text.set_data_from_numpy(numpy.array([[b"Once upon"]], dtype=object))
            count = tritonclient.http.InferInput("max_tokens", [1, 1], "INT32")
            count.set_data_from_numpy(numpy.array([[4]], dtype=numpy.int32))
            said = client.infer("ensemble", [text, count]).as_numpy("text_output")[0].decode()
            assert said and said == answer(port, "another_ensemble")
            with pytest.raises(InferenceServerException):
                client.unload_model("another")  # nobody is an admin


@pytest.mark.parametrize("wire", [tritonclient.http, tritonclient.grpc] if HAS_GRPC else [tritonclient.http])
def test_explicit_control(tmp_path, wire):
    add_model(tmp_path, "one")
    add_model(tmp_path, "two")
    options = ("--model_control_mode", "explicit", "--load_model", "one", "--enable_admin_routes")
    with serving(tmp_path, *options) as (port, grpc_port):
        over_grpc = wire is tritonclient.grpc
        client = wire.InferenceServerClient(f"127.0.0.1:{grpc_port if over_grpc else port}")
        listed = client.get_model_repository_index(as_json=True).get("models") if over_grpc else None
        states = {m["name"]: m["state"] for m in listed or client.get_model_repository_index()}
        assert (states["one"], states["two"]) == ("READY", "UNAVAILABLE")
        client.load_model("two")
        assert client.is_model_ready("two") and answer(port, "two") == answer(port, "one") != ""
        client.unload_model("one")
        assert not client.is_model_ready("one")
        assert answer(port, "ensemble")  # now of "two"
        add_model(tmp_path, "three")
        client.load_model("three")
        (tmp_path / "broken" / "1").mkdir(parents=True)
        for name in ("broken", "none"):
            with pytest.raises(InferenceServerException):
                client.load_model(name)
        assert client.is_model_ready("two") and client.is_model_ready("three")
        client.close()


@pytest.mark.parametrize("wire", [tritonclient.http, tritonclient.grpc] if HAS_GRPC else [tritonclient.http])
def test_explicit_control_by_the_names_of_parts(tmp_path, wire):
    """A deployment's script that loads its five models one by one, in an order of its own: the engine is read once."""
    for part in PARTS:
        (tmp_path / part / "1").mkdir(parents=True)
        kind = 'platform: "ensemble"' if part == "ensemble" else 'backend: "python"'
        (tmp_path / part / "config.pbtxt").write_text(f'name: "{part}"\n{kind}\n')
    add_model(tmp_path, "tensorrt_llm")
    with serving(tmp_path, "--model_control_mode", "explicit", "--enable_admin_routes") as (port, grpc_port):
        client = wire.InferenceServerClient(f"127.0.0.1:{grpc_port if wire is tritonclient.grpc else port}")
        assert not client.is_model_ready("ensemble")
        client.load_model("preprocessing")
        created = httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"][0]["created"]
        time.sleep(1.1)  # `created` counts seconds
        for name in (*PARTS, "tensorrt_llm"):
            client.load_model(name)
            assert client.is_model_ready(name)
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"][0]["created"] == created
        assert answer(port, "ensemble")
        with pytest.raises(InferenceServerException, match="tensorrt_llm"):
            client.unload_model("ensemble")
        client.unload_model("tensorrt_llm")
        assert not client.is_model_ready("ensemble")
        client.load_model("ensemble")
        assert answer(port, "ensemble")
        client.close()


def test_poll_follows_the_folders_while_a_stream_runs(tmp_path):
    add_model(tmp_path, "one")
    with serving(tmp_path, "--model_control_mode", "poll", "--repository_poll_secs", "0.2") as (port, _):
        client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}")
        chunks, opened = [], threading.Event()

        def stream():
            body = {"model": "one", "prompt": "Once", "max_tokens": 300, "ignore_eos": True, "stream": True, "temperature": 0}
            with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=120 * SCALE) as response:
                for line in response.iter_lines():
                    if line:
                        chunks.append(line)
                        opened.set()

        running = threading.Thread(target=stream)
        running.start()
        assert opened.wait(60 * SCALE)
        loaded_at = httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"][0]["created"]
        time.sleep(1.1)  # `created` counts seconds
        (tmp_path / "one").rename(tmp_path / ".old")
        add_model(tmp_path, "one", 'name: "one"')
        add_model(tmp_path, "two")
        (tmp_path / "bad").mkdir()
        wait_for(lambda: "bad" in index(client) and client.is_model_ready("two"))
        assert "version folder" in index(client)["bad"]["reason"]
        wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"][0]["created"] > loaded_at)
        assert answer(port, "one")
        running.join(120 * SCALE)
        assert chunks[-1] == "data: [DONE]" and not any("error" in json.loads(c[6:]) for c in chunks[:-1])
        shutil.rmtree(tmp_path / "two")
        shutil.rmtree(tmp_path / "bad")
        wait_for(lambda: "two" not in index(client) and "bad" not in index(client))
        assert client.is_model_ready("one")
        client.close()
