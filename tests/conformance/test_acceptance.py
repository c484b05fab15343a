"""The twenty checks that pin what the three surfaces must do, by number: 1-8 BentoML, 9-14 KServe v2, 15-20 OpenAI. Where
a check is about a client library, the library's own suite beside this file goes further; 14 is test_article_service.py."""
import asyncio
import base64
import contextlib
import json
import os
import queue
import struct
import subprocess
import threading
import time

import httpx
import jsonschema
import numpy as np
import openai
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor, serialize_byte_tensor

from triton_text import outputs, text_inputs, text_of

from conftest import whole_model

MAX = {"max_tokens": 128}
EXACT = {"ignore_eos": True}
USER = [{"role": "user", "content": "Name three stations of the line to the north."}]
MODELS = ["ensemble", "tensorrt_llm_bls", "preprocessing", "tensorrt_llm", "postprocessing"]


def generate(http, **kwargs):
    with http.stream("POST", "/generate", **kwargs) as response:
        return response, list(response.iter_raw())


# ---- BentoML


def test_01_health_and_methods(http):
    for path in ("/readyz", "/healthz"):
        assert http.get(path).status_code == 200 and http.get(path).content == b"\n"
    wrong = http.get("/generate")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    wrong = http.post("/readyz")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "GET, HEAD"


def test_02_bodies_that_are_accepted(http):
    for kwargs in (dict(json={}), dict(content=b""), dict(json={"nobody": {"knows": 1}, **MAX}),
                   dict(json={"max_tokens": "300"}), dict(data={"prompt": "Hi", "max_tokens": "128"})):
        response, chunks = generate(http, **kwargs)
        assert response.status_code == 200, kwargs
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["transfer-encoding"] == "chunked"
        assert b"data:" not in b"".join(chunks)


def test_02_multipart_form(http):
    response, chunks = generate(http, files={"prompt": (None, "Hi"), "max_tokens": (None, "128")})
    assert response.status_code == 200 and b"data:" not in b"".join(chunks)


def test_03_bodies_that_are_refused(http):
    kinds = [({"max_tokens": 127}, "greater_than_equal"), ({"max_tokens": 1025}, "less_than_equal"),
             ({"max_tokens": 300.5}, "int_from_float"), ({"max_tokens": None}, "int_type"),
             ({"max_tokens": [1]}, "int_type"), ({"max_tokens": "abc"}, "int_parsing"),
             ({"prompt": None}, "string_type"), ([1], "model_type")]
    for body, kind in kinds:
        response = http.post("/generate", json=body)
        assert response.status_code == 400 and [d["type"] for d in response.json()["detail"]] == [kind], body
    bad = http.post("/generate", content=b"{bad")
    assert bad.status_code == 400 and bad.json()["detail"][0]["type"] == "json_invalid"
    two = http.post("/generate", json={"prompt": None, "max_tokens": 1}).json()
    assert two["error"] == "2 validation error for Input" and len(two["detail"]) == 2


def test_04_every_chunk_decodes_alone(http, client, model):
    text = "駅弁 🍱🚄🗻 は 美味しい です。"
    _, chunks = generate(http, json={"prompt": f"Say exactly: {text} {text}", "max_tokens": 256})
    joined = "".join(chunk.decode("utf-8") for chunk in chunks)
    _, again = generate(http, json={"prompt": f"Say exactly: {text} {text}", "max_tokens": 256})
    assert b"".join(again).decode() == joined
    # The model may answer in plain letters; echo puts the characters on the wire for sure, tokens of one byte each.
    tokens = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]
    assert len(tokens) > len(text)
    whole = client.completions.create(model=model, prompt=tokens, echo=True, max_tokens=4, temperature=0)
    streamed = client.completions.create(model=model, prompt=tokens, echo=True, max_tokens=4, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in streamed) == whole.choices[0].text
    assert whole.choices[0].text.startswith(text)


def hold(stack, server, count):
    """`count` streams that go on until the returned list of responses is closed."""
    held = []
    for _ in range(count):
        context = httpx.stream("POST", server.url + "/generate", json={"prompt": "Once"}, timeout=60)
        response = stack.enter_context(context)
        chunks = response.iter_raw()
        next(chunks)
        held.append((response, chunks))
    return held


def test_05_max_concurrency(start_server):
    with start_server("--traffic.max_concurrency", 2) as server, contextlib.ExitStack() as stack:
        held = hold(stack, server, 2)
        begin = time.monotonic()
        third = httpx.post(server.url + "/generate", json={"prompt": "x"}, timeout=60)
        assert third.status_code == 429 and third.json() == {"error": "Too many requests"}
        assert time.monotonic() - begin < 2
        for path in ("/metrics", "/healthz", "/livez", "/readyz"):
            assert httpx.get(server.url + path).status_code == 200
        assert len(held) == 2


def test_06_timeout_is_to_the_first_byte(start_server):
    with start_server("--traffic.timeout", 1, "--max_batch_size", 1) as server:
        body = {"model": "m", "prompt": "Once", "max_tokens": 6000, "ignore_eos": True, "stream": True}
        begin = time.monotonic()
        with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as slow:
            chunks = slow.iter_raw()
            next(chunks)
            late = httpx.post(server.url + "/generate", json={"prompt": "x"}, timeout=60)  # waits for the only slot
            assert late.status_code == 504
            assert late.json() == {"error": "Not able to process the request in 1 seconds"}
            while time.monotonic() - begin < 3:
                assert next(chunks)  # twice its timeout old, and goes on


def test_07_leaving_frees_the_slot(http, url, metrics):
    labels = dict(endpoint="/generate", http_response_code="200")
    before = metrics.value("bentoml_service_request_total", **labels)
    with httpx.Client(base_url=url, timeout=60) as leaving:
        with leaving.stream("POST", "/generate", json={"prompt": "Tell a long story."}) as response:
            chunks = response.iter_raw()
            next(chunks)
            metrics.wait_for("bentoml_service_request_in_progress", 1, endpoint="/generate")
    metrics.wait_for("ekiben_requests_running", 0)
    metrics.wait_for("bentoml_service_request_in_progress", 0, endpoint="/generate")
    assert metrics.value("bentoml_service_request_total", **labels) == before + 1


def test_08_bentoml_client(url, start_server):
    import bentoml
    from bentoml.exceptions import InvalidArgument, ServiceUnavailable

    with bentoml.SyncHTTPClient(url) as client:
        assert "generate" in client.endpoints
        assert len(list(client.generate(prompt="Hi", max_tokens=128))) > 1
        with pytest.raises(InvalidArgument):
            list(client.generate(prompt="Hi", max_tokens=1))
    with start_server("--max_connections", 1) as server, bentoml.SyncHTTPClient(server.url) as client:
        stream = client.generate(prompt="Once", max_tokens=1024)
        next(stream)
        with pytest.raises(ServiceUnavailable):  # a second connection is one too many
            list(client.generate(prompt="Hi", max_tokens=128))
        stream.close()


# ---- KServe v2


def test_09_description_of_models(http):
    server = http.get("/v2").json()
    assert server["name"] and server["version"] and isinstance(server["extensions"], list)
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert http.get(path).status_code == 200 and http.get(path).content == b""
    for name in MODELS:
        for version in ("", "/versions/1"):
            base = f"/v2/models/{name}{version}"
            assert http.get(base).json()["name"] == name
            ready = http.get(base + "/ready")
            assert ready.status_code == 200 and ready.content == b""
            assert http.get(base + "/config").json()["name"] == name
            assert http.get(base + "/stats").json()["model_stats"][0]["name"] == name
    index = http.post("/v2/repository/index", json={}).json()
    assert {m["name"]: m["state"] for m in index}.items() >= {name: "READY" for name in MODELS}.items()
    assert http.post("/v2/repository/index").status_code == 200
    for path in ("/v2/models/nobody", "/v2/models/nobody/config", "/v2/models/nobody/stats",
                 "/v2/models/ensemble/versions/7"):
        missing = http.get(path)
        assert missing.status_code == 404 and set(missing.json()) == {"error"}, path
    for method, path in (("POST", "/v2/models/ensemble"), ("GET", "/v2/models/ensemble/infer"),
                         ("GET", "/v2/repository/index"), ("DELETE", "/v2")):
        wrong = http.request(method, path)
        assert wrong.status_code == 405 and wrong.json() == {"error": "Method Not Allowed"}, path
    unknown = http.get("/v2/no/such/route")
    assert unknown.status_code == 404 and unknown.json() == {"error": "Not Found"}


def test_09_unloaded_model(start_server):
    with start_server("--enable_admin_routes") as server:
        with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
            client.unload_model("m")
            assert not client.is_model_ready("ensemble")
            end = time.monotonic() + 30
            while (m := {m["name"]: m for m in client.get_model_repository_index()}["m"])["state"] == "UNLOADING":
                assert time.monotonic() < end
            assert m["state"] == "UNAVAILABLE" and m["reason"] == "unloaded"
            with pytest.raises(InferenceServerException):
                client.infer("ensemble", text_inputs(triton, "x"))
            client.load_model("m")
            assert client.is_model_ready("ensemble")
            assert text_of(client.infer("ensemble", text_inputs(triton, "The train")))


INFER = "/v2/models/ensemble/infer"


def json_inputs(text="The train", max_tokens=4):
    return [{"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "data": [text]},
            {"name": "max_tokens", "shape": [1, 1], "datatype": "INT32", "data": [[max_tokens]]}]


def binary_body(inputs, blobs, **more):
    head = json.dumps({"inputs": inputs, **more}).encode()
    return head + b"".join(blobs), {"inference-header-content-length": str(len(head)),
                                    "content-type": "application/octet-stream"}


def split_binary(response):
    length = int(response.headers["inference-header-content-length"])
    head, rest, found = json.loads(response.content[:length]), response.content[length:], {}
    for output in head["outputs"]:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]], rest = rest[:size], rest[size:]
    assert rest == b""
    return head, found


def test_10_infer_in_every_form(http):
    wanted = [{"name": "text_output"}]
    plain = http.post(INFER, json={"id": "p1", "inputs": json_inputs(), "outputs": wanted})
    assert plain.status_code == 200, plain.text
    answer = plain.json()
    assert answer["id"] == "p1" and answer["model_name"] == "ensemble" and answer["model_version"] == "1"
    (text,) = answer["outputs"][0]["data"]
    assert answer["outputs"][0]["datatype"] == "BYTES" and text

    word, four = struct.pack("<I", 9) + b"The train", struct.pack("<i", 4)
    binary = [{"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 13}},
              {"name": "max_tokens", "shape": [1, 1], "datatype": "INT32", "parameters": {"binary_data_size": 4}}]
    body, headers = binary_body(binary, [word, four], id="p2", outputs=[
        {"name": "text_output", "parameters": {"binary_data": True}}])
    head, found = split_binary(http.post(INFER, content=body, headers=headers))
    assert head["id"] == "p2" and found["text_output"][4:].decode() == text

    body, headers = binary_body([binary[0], json_inputs()[1]], [word], outputs=wanted)  # mixed; answer in JSON
    assert http.post(INFER, content=body, headers=headers).json()["outputs"][0]["data"] == [text]
    body, headers = binary_body(binary, [word, four], outputs=wanted, parameters={"binary_data_output": True})
    assert split_binary(http.post(INFER, content=body, headers=headers))[1]["text_output"][4:].decode() == text

    raw = http.post("/v2/models/preprocessing/infer", content=b"The train",
                    headers={"inference-header-content-length": "0", "content-type": "application/octet-stream"})
    assert raw.status_code == 400 and "error" in raw.json()  # a raw body is one input; this model wants two


def test_10_bytes_with_zeros(http):
    tricky = b"a\x00b\x00"
    sent = serialize_byte_tensor(np.array([[tricky]], dtype=np.object_)).item()
    inputs = [{"name": "QUERY", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(sent)}},
              {"name": "REQUEST_OUTPUT_LEN", "shape": [1, 1], "datatype": "INT32", "data": [4]}]
    body, headers = binary_body(inputs, [sent])
    answer = http.post("/v2/models/preprocessing/infer", content=body, headers=headers).json()
    ids = next(o for o in answer["outputs"] if o["name"] == "INPUT_ID")["data"]
    assert http.post("/detokenize", json={"tokens": ids}).json()["prompt"] == tricky.decode()
    back = http.post("/v2/models/postprocessing/infer", json={"inputs": [
        {"name": "TOKENS_BATCH", "shape": [1, 1, len(ids)], "datatype": "INT32", "data": ids},
        {"name": "SEQUENCE_LENGTH", "shape": [1, 1], "datatype": "INT32", "data": [len(ids)]}],
        "outputs": [{"name": "OUTPUT", "parameters": {"binary_data": True}}]})
    assert deserialize_bytes_tensor(split_binary(back)[1]["OUTPUT"])[0] == tricky


def test_10_wrong_byte_counts(http):
    word = struct.pack("<I", 9) + b"The train"
    for size, blob in ((12, word), (14, word), (13, word[:-1]), (13, struct.pack("<I", 4_000_000_000) + b"The train")):
        inputs = [{"name": "text_input", "shape": [1, 1], "datatype": "BYTES",
                   "parameters": {"binary_data_size": size}}, json_inputs()[1]]
        body, headers = binary_body(inputs, [blob])
        answer = http.post(INFER, content=body, headers=headers)
        assert answer.status_code == 400 and set(answer.json()) == {"error"}, (size, answer.text)
    for shape in ([2, 2], [-1], [1 << 40, 1 << 40], []):
        inputs = [{"name": "text_input", "shape": shape, "datatype": "BYTES", "data": ["x"]}, json_inputs()[1]]
        answer = http.post(INFER, json={"inputs": inputs})
        assert answer.status_code == 400 or shape == [], (shape, answer.text)


GENERATE = "/v2/models/ensemble/generate"


def test_11_generate(http):
    flat = http.post(GENERATE, json={"text_input": "The train", "max_tokens": 4, "temperature": 0})
    assert flat.status_code == 200 and flat.headers["content-type"].startswith("application/json")
    answer = flat.json()
    assert answer["model_name"] == "ensemble" and answer["model_version"] == "1"
    assert isinstance(answer["text_output"], str) and answer["text_output"]
    nested = http.post(GENERATE, json={"id": "g1", "text_input": "The train",
                                       "parameters": {"max_tokens": 4, "temperature": 0}}).json()
    assert nested["text_output"] == answer["text_output"] and nested["id"] == "g1"
    odd = http.post(GENERATE, json={"text_input": "The train", "max_tokens": 4, "temperature": 0, "nobody": "knows",
                                    "bad_words": "", "stop_words": ""})
    assert odd.status_code == 200 and odd.json()["text_output"] == answer["text_output"]
    for body in ({"max_tokens": 4}, {"text_input": "x"}):
        missing = http.post(GENERATE, json=body)
        assert missing.status_code == 400 and set(missing.json()) == {"error"}
    several = http.post(GENERATE, json={"text_input": "The train", "max_tokens": 4, "stream": True})
    assert several.status_code == 500  # Triton's INTERNAL
    assert several.json()["error"].startswith("generate expects model to produce exactly 1 response, use generate stream")


def events(response):
    """The objects of an event stream, whose framing is checked to the byte."""
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    parts = "".join(response.iter_text()).split("\n\n")
    assert parts[-1] == "" and all(p.startswith("data: {") and "\n" not in p for p in parts[:-1])
    return [json.loads(p[6:]) for p in parts[:-1]]


def test_12_generate_stream(http):
    body = {"text_input": "The train", "max_tokens": 6, "temperature": 0, "stream": True}
    with http.stream("POST", "/v2/models/ensemble/generate_stream", json=body) as response:
        assert response.status_code == 200
        found = events(response)
    whole = http.post(GENERATE, json={**body, "stream": False, "exclude_input_in_output": True}).json()["text_output"]
    assert "".join(e["text_output"] for e in found) == whole and len(found) > 2
    for body in ({"max_tokens": 4}, {"text_input": "x", "max_tokens": 0, "stream": True}):
        early = http.post("/v2/models/ensemble/generate_stream", json=body)
        assert early.status_code == 400 and set(early.json()) == {"error"}
    with http.stream("POST", "/v2/models/ensemble/generate_stream",
                     json={"text_input": "The train", "max_tokens": 3}) as once:  # not decoupled: one event
        assert len(events(once)) == 1


def test_12_error_in_mid_stream(start_server):
    """What is still running when the drain's time is over ends with an error event under status 200."""
    with start_server("--drain_timeout", 1) as server:
        body = {"text_input": "The train", "max_tokens": 8000, "stream": True, "end_id": -1}
        with httpx.stream("POST", server.url + "/v2/models/ensemble/generate_stream", json=body, timeout=60) as response:
            assert response.status_code == 200
            text = ""
            for piece in response.iter_text():
                if not text:
                    server.process.terminate()
                text += piece
        last = text.split("\n\n")[-2]
        assert set(json.loads(last[6:])) == {"error"}, last


class Stream:
    def __init__(self, address, headers=None):
        self.items = queue.Queue()
        self.client = triton_grpc.InferenceServerClient(address)
        self.client.start_stream(callback=lambda result, error: self.items.put((result, error)), headers=headers)

    def send(self, request_id, max_tokens=6, model="ensemble", empty_final=False, text="The train", **more):
        self.client.async_stream_infer(model, text_inputs(triton_grpc, text, max_tokens, stream=True, **more),
                                       request_id=request_id, enable_empty_final_response=empty_final,
                                       outputs=outputs(triton_grpc, "text_output"))

    def next(self):
        return self.items.get(timeout=120)

    def close(self, cancel=False):
        self.client.stop_stream(cancel_requests=cancel)
        self.client.close()


def test_13_stream_infer(grpc_address, metrics):
    stream = Stream(grpc_address)
    stream.send("a", max_tokens=24)
    stream.send("b", max_tokens=24)
    order, finals, texts = [], [], {"a": "", "b": ""}
    while len(finals) < 2:
        result, error = stream.next()
        assert error is None
        response = result.get_response()
        order.append(response.id)
        if response.parameters["triton_final_response"].bool_param:
            finals.append(response.id)
        texts[response.id] += text_of(result)  # no empty message: nobody asked for one
    assert sorted(finals) == ["a", "b"] and texts["a"] == texts["b"]
    assert order != sorted(order) and order != sorted(order, reverse=True)

    stream.send("bad", max_tokens=0)
    result, error = stream.next()
    assert result is None and error is not None
    stream.send("empty", model="tensorrt_llm_bls", empty_final=True)  # the stream is still open
    seen = []
    while not seen or not seen[-1].parameters["triton_final_response"].bool_param:
        seen.append(stream.next()[0].get_response())
    assert not seen[-1].outputs and all(r.outputs for r in seen[:-1])
    for _ in range(2):
        stream.send("left", max_tokens=4000, end_id=-1)
    metrics.wait_for("ekiben_requests_running", 2)
    stream.close(cancel=True)
    metrics.wait_for("ekiben_requests_running", 0)

    strict = Stream(grpc_address, headers={"triton_grpc_error": "true"})
    strict.send("bad", max_tokens=0)
    _, error = strict.next()
    assert error.status() == "StatusCode.INVALID_ARGUMENT"
    strict.close()

    drained = Stream(grpc_address)
    for i in range(3):
        drained.send(str(i))
    drained.close()  # half-closes and returns when the server has ended the stream
    results = []
    while not drained.items.empty():
        results.append(drained.next())
    assert all(error is None for _, error in results)
    assert sum(r.get_response().parameters["triton_final_response"].bool_param for r, _ in results) == 3


def test_13_type_of_the_opt_in(grpc_address):
    """The client sends a bool only; by hand, another type is refused."""
    import grpc
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="ensemble", id="x")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(b"x")
    request.inputs.add(name="max_tokens", datatype="INT32", shape=[1, 1]).contents.int_contents.append(2)
    request.parameters["triton_enable_empty_final_response"].string_param = "yes"
    path = "/inference.GRPCInferenceService/ModelStreamInfer"
    with grpc.insecure_channel(grpc_address) as channel:
        call = channel.stream_stream(path, request_serializer=service_pb2.ModelInferRequest.SerializeToString,
                                     response_deserializer=service_pb2.ModelStreamInferResponse.FromString)
        answers = call(iter([request]), timeout=60)
        assert "triton_enable_empty_final_response" in next(answers).error_message
        strict = call(iter([request]), timeout=60, metadata=[("triton_grpc_error", "true")])
        with pytest.raises(grpc.RpcError) as e:
            list(strict)
        assert e.value.code() == grpc.StatusCode.INVALID_ARGUMENT


# ---- OpenAI


def chat(client, model, **kwargs):
    extra = kwargs.pop("extra", EXACT)
    return client.chat.completions.create(**{"model": model, "messages": USER, "max_tokens": 24, "temperature": 0,
                                             "extra_body": extra, **kwargs})


def complete(client, model, prompt="The train leaves", **kwargs):
    extra = kwargs.pop("extra", EXACT)
    return client.completions.create(**{"model": model, "prompt": prompt, "max_tokens": 24, "temperature": 0,
                                        "extra_body": extra, **kwargs})


def test_15_sampling_parameters(client, model, http):
    whole = chat(client, model).choices[0].message.content
    assert "".join(c.choices[0].delta.content or "" for c in chat(client, model, stream=True)) == whole
    text = complete(client, model).choices[0].text
    assert "".join(c.choices[0].text for c in complete(client, model, stream=True)) == text
    for call in (chat, complete):
        assert [c.index for c in call(client, model, n=3, temperature=1, seed=3).choices] == [0, 1, 2]
        assert call(client, model, temperature=1, seed=3).choices[0] == call(client, model, temperature=1, seed=3).choices[0]
    stop = whole[len(whole) // 2:][:6]  # over more than one token
    for stops in (stop, ["\x01", "\x02", "\x03", stop]):
        cut = chat(client, model, stop=stops).choices[0]
        assert cut.message.content == whole[:whole.index(stop)] and cut.finish_reason == "stop"
        assert "".join(c.choices[0].delta.content or "" for c in chat(client, model, stop=stops, stream=True)) == \
            cut.message.content
    logprobs = chat(client, model, logprobs=True, top_logprobs=2).choices[0].logprobs
    assert logprobs.refusal is None and len(logprobs.content) == 24
    assert all(len(t.top_logprobs) == 2 and isinstance(t.bytes, list) for t in logprobs.content)
    prompt = http.post("/tokenize", json={"prompt": "The train leaves"}).json()["tokens"]
    for max_tokens in (0, 1):
        scored = complete(client, model, prompt, echo=True, logprobs=1, max_tokens=max_tokens).choices[0].logprobs
        assert len(scored.tokens) == len(scored.token_logprobs) == len(scored.text_offset) == len(prompt) + max_tokens
        assert scored.token_logprobs[0] is None and scored.top_logprobs[0] is None
    first = chat(client, model, max_tokens=1, extra={"return_token_ids": True}).choices[0]
    banned = first.model_extra["token_ids"][0]
    again = chat(client, model, max_tokens=1, logit_bias={str(banned): -100}, extra={"return_token_ids": True}).choices[0]
    assert again.model_extra["token_ids"][0] != banned


def test_16_usage_in_streams(client, model, http):
    counts = lambda u: (u.prompt_tokens, u.completion_tokens, u.total_tokens)
    whole = chat(client, model).usage
    on = list(chat(client, model, stream=True, stream_options={"include_usage": True}))
    assert on[-1].choices == [] and counts(on[-1].usage) == counts(whole) and all(c.choices for c in on[:-1])
    for kwargs in ({}, {"stream_options": {"include_usage": False}}, {"stream_options": {}}):
        off = list(chat(client, model, stream=True, **kwargs))
        assert all(c.choices and c.usage is None for c in off)
    for path, more in (("/v1/chat/completions", {"messages": USER}), ("/v1/completions", {"prompt": "x"})):
        answer = http.post(path, json={"model": model, "max_tokens": 3, "stream": True, **more}).text
        assert answer.endswith("\n\ndata: [DONE]\n\n") and answer.count("[DONE]") == 1


SCHEMA = {"type": "object", "properties": {"station": {"type": "string", "maxLength": 20}, "platform": {"type": "integer"},
                                           "open": {"type": "boolean"}},
          "required": ["station", "platform", "open"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": "timetable", "description": "Departures of a station.",
                                           "parameters": {"type": "object", "additionalProperties": False, "properties":
                                                          {"station": {"type": "string", "maxLength": 20}},
                                                          "required": ["station"]}}},
         {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {},
                                                                           "additionalProperties": False}}}]


def test_17_structured_output(client, model):
    ask = [{"role": "user", "content": "Tokyo station, platform 7, open. As a JSON object."}]
    some = chat(client, model, messages=ask, max_tokens=300, extra={}, response_format={"type": "json_object"}).choices[0]
    if some.finish_reason == "stop":
        assert isinstance(json.loads(some.message.content), dict)
    else:
        assert some.message.content.lstrip().startswith("{")
    form = {"type": "json_schema", "json_schema": {"name": "station", "schema": SCHEMA, "strict": True}}
    for seed in range(5):
        exact = chat(client, model, messages=ask, max_tokens=300, extra={}, temperature=1, seed=seed,
                     response_format=form).choices[0]
        assert exact.finish_reason == "stop"
        jsonschema.validate(json.loads(exact.message.content), SCHEMA)


@whole_model
def test_17_tools(client, model):
    ask = [{"role": "user", "content": "When do trains leave Sendai?"}]
    named = {"type": "function", "function": {"name": "timetable"}}
    for choice, reasons in (("required", {"tool_calls"}), (named, {"stop"})):
        whole = chat(client, model, messages=ask, tools=TOOLS, tool_choice=choice, extra={}, max_tokens=300).choices[0]
        assert whole.finish_reason in reasons
        for call in whole.message.tool_calls:
            assert call.id and call.type == "function" and call.function.name in ("timetable", "clock")
            jsonschema.validate(json.loads(call.function.arguments),
                                next(t["function"]["parameters"] for t in TOOLS
                                     if t["function"]["name"] == call.function.name))
        pieces, names = {}, {}
        reason = None
        for chunk in chat(client, model, messages=ask, tools=TOOLS, tool_choice=choice, extra={}, max_tokens=300,
                          stream=True):
            reason = chunk.choices[0].finish_reason or reason
            for delta in chunk.choices[0].delta.tool_calls or []:
                if delta.index not in pieces:  # the first piece says what is called
                    assert delta.id and delta.type == "function" and delta.function.name
                    names[delta.index] = delta.function.name
                else:
                    assert delta.id is None and delta.function.name is None
                pieces[delta.index] = pieces.get(delta.index, "") + (delta.function.arguments or "")
        assert [names[i] for i in sorted(names)] == [c.function.name for c in whole.message.tool_calls]
        assert [pieces[i] for i in sorted(pieces)] == [c.function.arguments for c in whole.message.tool_calls]
        assert reason == whole.finish_reason
    none = chat(client, model, messages=ask, tools=TOOLS, tool_choice="none").choices[0]
    assert not none.message.tool_calls and none.message.content
    auto = chat(client, model, messages=ask, tools=TOOLS, tool_choice="auto", extra={}, max_tokens=64).choices[0]
    assert auto.finish_reason in ("stop", "length", "tool_calls")
    assert (auto.finish_reason == "tool_calls") == bool(auto.message.tool_calls)


def test_18_errors(client, model, http, start_server):
    nested = lambda response: set(response.json()["error"]) == {"message", "type", "param", "code"}
    with pytest.raises(openai.NotFoundError):
        chat(client, "no-such-model")
    with pytest.raises(openai.BadRequestError) as bad:
        chat(client, model, temperature="warm")
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        complete(client, model, [5] * 9000)
    assert long.value.param == "prompt"
    wrong = http.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/csv"})
    assert 400 <= wrong.status_code < 500 and nested(wrong)
    with start_server("--api_key", "k", "--traffic.max_concurrency", 1) as server:
        keyed = openai.OpenAI(base_url=server.url + "/v1", api_key="k", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=server.url + "/v1", api_key="no", max_retries=0).models.list()
        stream = complete(keyed, "m", stream=True, max_tokens=4000)
        next(iter(stream))
        with pytest.raises((openai.RateLimitError, openai.InternalServerError)) as full:
            complete(keyed, "m", max_tokens=1)
        assert full.value.status_code in (429, 503) and int(full.value.response.headers["retry-after"]) >= 1
        assert nested(full.value.response)
        stream.close()


def test_18_error_in_mid_stream(start_server):
    with start_server("--drain_timeout", 1) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="k", max_retries=0)
        stream = complete(client, "m", stream=True, max_tokens=8000)
        with pytest.raises(openai.APIError):
            for _ in stream:
                if server.process.poll() is None:
                    server.process.terminate()


def test_19_models_and_embeddings(client, model, http):
    assert model in [m.id for m in client.models.list()]
    plain = client.embeddings.create(model=model, input=["A train."], encoding_format="float").data[0].embedding
    raw = http.post("/v1/embeddings", json={"model": model, "input": ["A train."], "encoding_format": "base64"}).json()
    packed = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4")
    assert np.allclose(packed, plain, atol=1e-6)
    assert np.allclose(client.embeddings.create(model=model, input="A train.").data[0].embedding, plain, atol=1e-6)

    async def listed():
        async with openai.AsyncOpenAI(base_url=str(client.base_url), api_key="EMPTY") as other:
            return [m.id async for m in other.models.list()], (await other.embeddings.create(
                model=model, input="A train.")).data[0].embedding

    ids, vector = asyncio.run(listed())
    assert model in ids and np.allclose(vector, plain, atol=1e-6)


def test_20_metrics(http):
    text = http.get("/metrics").text
    families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(families) == len(set(families))
    for prefix in ("bentoml_service_", "nv_inference_", "nv_trt_llm_", "vllm:", "ekiben_"):
        assert any(f.startswith(prefix) for f in families), prefix
    samples = [line.rsplit(" ", 1)[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert len(samples) == len(set(samples))
    if promtool := os.environ.get("EKIBEN_PROMTOOL"):
        run = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
        # 3: only advice about names (Triton's and vLLM's are theirs), every line was read
        assert run.returncode in (0, 3), run.stderr[-2000:]
        assert not [line for line in run.stderr.splitlines() if "duplicate" in line or "parsing" in line]
    else:
        from prometheus_client.parser import text_string_to_metric_families

        assert len(list(text_string_to_metric_families(text))) == len(families)


def test_good_streams_beside_bad_ones(url, http):
    """One of each surface, all at once: none disturbs another's text."""
    def run(results, key, method, path, body):
        with httpx.Client(base_url=url, timeout=120) as one:
            results[key] = one.request(method, path, json=body).text

    calls = {"generate": ("POST", "/generate", {"prompt": "Hi", **MAX}),
             "v2": ("POST", GENERATE, {"text_input": "The train", "max_tokens": 16, "temperature": 0}),
             "bad v2": ("POST", INFER, {"inputs": []}), "bad": ("POST", "/generate", {"max_tokens": 1})}
    alone, together = {}, {}
    for key, call in calls.items():
        run(alone, key, *call)
    threads = [threading.Thread(target=run, args=(together, key, *call)) for key, call in calls.items()]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert together == alone
