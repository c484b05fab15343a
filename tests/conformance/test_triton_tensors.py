"""What Triton's clients do with tensors beside sending them: system shared memory, classification, guided decoding, logits,
and statistics and nv_* metrics after a sequence of requests that is counted by hand. tritonclient over HTTP and gRPC."""
import json

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from conftest import HAS_GRPC, whole_model

PROMPT = "The capital of France is"
PREFIX = "/ekiben_conformance_"


@pytest.fixture(scope="module")
def server(start_server):
    with start_server("--shared_memory_prefix", PREFIX, "--gather_context_logits", "enable", "--gather_generation_logits",
                      "enable") as started:
        yield started


@pytest.fixture(params=["http", "grpc"])
def wire(request, server):
    if request.param == "grpc" and not HAS_GRPC:
        pytest.skip("this build has no gRPC")
    module = triton_http if request.param == "http" else triton_grpc
    address = server.url.removeprefix("http://") if request.param == "http" else server.grpc
    with module.InferenceServerClient(address) as client:
        yield module, client


def tensor(module, name, values, kind):
    array = np.array(values)
    out = module.InferInput(name, array.shape, kind)
    out.set_data_from_numpy(array.astype(object) if kind == "BYTES" else array)
    return out


def text(module, prompt, tokens, **more):
    inputs = [tensor(module, "text_input", [[prompt.encode()]], "BYTES"),
              tensor(module, "max_tokens", np.array([[tokens]], np.int32), "INT32")]
    for name, value in more.items():
        if isinstance(value, bool):
            inputs.append(tensor(module, name, np.array([[value]]), "BOOL"))
        else:
            inputs.append(tensor(module, name, [[value.encode()]], "BYTES"))
    return inputs


def test_tensors_by_system_shared_memory(wire):
    module, client = wire
    plain = client.infer("ensemble", text(module, PROMPT, 5)).as_numpy("text_output")[0]
    prompt = serialize_byte_tensor(np.array([[PROMPT.encode()]], object)).item()
    region = shm.create_shared_memory_region("region", PREFIX + "x", 4096)
    try:
        shm.set_shared_memory_region(region, [np.frombuffer(prompt, np.uint8)])
        client.unregister_system_shared_memory()
        client.register_system_shared_memory("region", PREFIX + "x", 4096)
        with pytest.raises(InferenceServerException, match="already in manager"):
            client.register_system_shared_memory("region", PREFIX + "x", 4096)
        with pytest.raises(InferenceServerException, match="only keys that start with"):
            client.register_system_shared_memory("other", "/something", 1)
        inputs = text(module, PROMPT, 5)
        inputs[0].set_shared_memory("region", len(prompt))
        output = module.InferRequestedOutput("text_output")
        output.set_shared_memory("region", 1024, offset=2048)
        answer = client.infer("ensemble", inputs, outputs=[output])
        assert list(answer.get_output("text_output")["shape"] if module is triton_http
                    else answer.get_output("text_output").shape) == [1]
        found = shm.get_contents_as_numpy(region, np.object_, [1], offset=2048)
        assert found[0] == plain
        status = client.get_system_shared_memory_status() if module is triton_http else \
            list(client.get_system_shared_memory_status(as_json=True)["regions"].values())
        assert [r["name"] for r in status] == ["region"] and int(status[0]["byte_size"]) == 4096
        output.set_shared_memory("region", 4, offset=0)
        with pytest.raises(InferenceServerException, match="should be at least"):
            client.infer("ensemble", inputs, outputs=[output])
        client.unregister_system_shared_memory("region")
        with pytest.raises(InferenceServerException, match="Unable to find shared memory region"):
            client.infer("ensemble", inputs)
    finally:
        shm.destroy_shared_memory_region(region)


def test_shared_memory_is_off_unless_enabled(start_server):
    with start_server() as plain, triton_http.InferenceServerClient(plain.url.removeprefix("http://")) as client:
        assert client.get_system_shared_memory_status() == []
        with pytest.raises(InferenceServerException, match="not offered"):
            client.register_system_shared_memory("region", PREFIX + "x", 1)


def test_classification(wire):
    module, client = wire
    output = module.InferRequestedOutput("num_output_tokens", class_count=3)
    answer = client.infer("ensemble", text(module, PROMPT, 4, return_num_output_tokens=True), outputs=[output])
    assert answer.as_numpy("num_output_tokens").tolist() == [[b"4:0"]]
    with pytest.raises(InferenceServerException, match="unsupported type 'BYTES'"):
        client.infer("ensemble", text(module, PROMPT, 4),
                     outputs=[module.InferRequestedOutput("text_output", class_count=1)])


@whole_model
def test_guided_decoding(wire):
    module, client = wire
    guide = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "[0-9]{4}"}
    try:
        answer = client.infer("ensemble", text(module, "The year is", 16, **guide)).as_numpy("text_output")[0].decode()
    except InferenceServerException as e:
        if "xgrammar" in e.message():
            pytest.skip("a build without xgrammar")
        raise
    assert len(answer) == 4 and answer.isdigit()
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    guide = {"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": json.dumps(schema)}
    answer = client.infer("tensorrt_llm_bls", text(module, "JSON:", 64, **guide)).as_numpy("text_output")[0].decode()
    assert isinstance(json.loads(answer)["a"], bool)


def test_logits(wire, server):
    module, client = wire
    both = {"return_context_logits": True, "return_generation_logits": True}
    ids = httpx.post(server.url + "/tokenize", json={"prompt": PROMPT}, timeout=60).json()["tokens"]
    inputs = [tensor(module, "input_ids", np.array([ids], np.int32), "INT32"),
              tensor(module, "input_lengths", np.array([[len(ids)]], np.int32), "INT32"),
              tensor(module, "request_output_len", np.array([[6]], np.int32), "INT32"),
              *text(module, PROMPT, 6, **both)[2:]]
    for _ in range(2):  # the second finds the prompt in the cache, and computes it all the same
        answer = client.infer("tensorrt_llm", inputs)
        context, generation = answer.as_numpy("context_logits"), answer.as_numpy("generation_logits")
        made = answer.as_numpy("output_ids")[0, 0]
        assert context.shape[:2] == (1, len(ids)) and generation.shape == (1, 1, 6, context.shape[2])
        assert context.dtype == generation.dtype == np.float32
        assert generation[0, 0].argmax(-1).tolist() == made.tolist()  # without sampling options the best token
        assert np.array_equal(context[0, -1], generation[0, 0, 0])
    # Log-probabilities of the same prompt on another surface.
    scored = httpx.post(server.url + "/v1/completions", timeout=60, json={
        "model": "m", "prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 1}).json()["choices"][0]["logprobs"]
    rows = context[0].astype(np.float64)
    norm = rows.max(-1) + np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1))
    own = [rows[i, ids[i + 1]] - norm[i] for i in range(len(ids) - 1)]
    assert np.allclose(own, scored["token_logprobs"][1:len(ids)], atol=1e-4)
    text_answer = client.infer("ensemble", text(module, PROMPT, 6, return_generation_logits=True))
    assert np.array_equal(text_answer.as_numpy("generation_logits"), generation)
    with pytest.raises(InferenceServerException, match="return_generation_logits: .* over the limit"):
        client.infer("ensemble", text(module, PROMPT, 7000, return_generation_logits=True))


def test_a_stream_sends_the_logits_of_its_tokens(server):
    body = {"text_input": PROMPT, "max_tokens": 3, "stream": True, "return_generation_logits": True}
    with httpx.stream("POST", server.url + "/v2/models/ensemble/generate_stream", json=body, timeout=120) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    vocab = len(events[0]["generation_logits"])
    assert sum(len(e["generation_logits"]) for e in events) == 3 * vocab


def test_logits_want_an_engine_that_gathers_them(start_server):
    with start_server() as plain, triton_http.InferenceServerClient(plain.url.removeprefix("http://")) as client:
        with pytest.raises(InferenceServerException, match="built without gather_context_logits"):
            client.infer("ensemble", text(triton_http, PROMPT, 1, return_context_logits=True))


def test_metrics_of_a_scripted_sequence(start_server):
    """Three good requests of the ensemble (one a batch of two, one a stream) and one of postprocessing, a refused one."""
    with start_server() as own, triton_http.InferenceServerClient(own.url.removeprefix("http://")) as client:
        tokens = [3, 4, 5]
        client.infer("ensemble", text(triton_http, PROMPT, tokens[0]))
        client.infer("ensemble", [tensor(triton_http, "text_input", [[b"a b"], [b"c d"]], "BYTES"),
                                  tensor(triton_http, "max_tokens", np.array([[tokens[1]], [tokens[1]]], np.int32), "INT32")])
        answer = httpx.post(own.url + "/v2/models/ensemble/generate_stream", timeout=60,
                            json={"text_input": PROMPT, "max_tokens": tokens[2], "stream": True})
        assert answer.status_code == 200
        client.infer("postprocessing", [tensor(triton_http, "TOKENS_BATCH", np.array([[[504, 3575]]], np.int32), "INT32"),
                                        tensor(triton_http, "SEQUENCE_LENGTH", np.array([[2]], np.int32), "INT32")])
        with pytest.raises(InferenceServerException):
            client.infer("ensemble", text(triton_http, PROMPT, 3, return_context_logits=True))

        def value(name, model="ensemble", **labels):
            return own.metrics.value(name, model=model, **labels)

        assert value("nv_inference_request_success") == 3
        assert value("nv_inference_request_failure") == 1
        assert value("nv_inference_count") == 4  # one of them a batch of two
        assert value("nv_inference_exec_count") == 3
        assert value("nv_inference_pending_request_count") == 0
        assert value("nv_inference_request_success", "preprocessing") == 3
        assert value("nv_inference_request_success", "tensorrt_llm") == 3
        assert value("nv_inference_request_success", "postprocessing") == 4
        assert value("nv_inference_request_success", "tensorrt_llm_bls") == 0
        assert value("nv_inference_first_response_histogram_ms_count") == 3
        assert value("nv_llm_output_token_len_sum", "tensorrt_llm") <= tokens[0] + 2 * tokens[1] + tokens[2]
        parts = ("queue", "compute_input", "compute_infer", "compute_output")
        before = {part: value(f"nv_inference_{part}_duration_us") for part in (*parts, "request")}
        assert before["request"] > 0 and before["compute_infer"] > 0
        assert abs(sum(before[part] for part in parts) - before["request"]) <= 4 * len(parts)  # each cut to whole us
        stats = client.get_inference_statistics("ensemble")["model_stats"][0]
        assert stats["inference_stats"]["success"] == {"count": 3, "ns": pytest.approx(before["request"] * 1000, abs=4000)}
        client.infer("ensemble", text(triton_http, PROMPT, 2))
        after = {part: value(f"nv_inference_{part}_duration_us") for part in (*parts, "request")}
        assert all(after[part] >= before[part] for part in after) and after["request"] > before["request"]
        assert value("nv_inference_exec_count") == 4
