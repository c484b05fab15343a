"""tritonclient.grpc, blocking, against our gRPC port: every RPC it has, streams with callbacks, errors, cancel."""
import queue
import threading

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from triton_text import outputs, tensor, text_inputs, text_of

MODELS = ["ensemble", "tensorrt_llm_bls", "preprocessing", "tensorrt_llm", "postprocessing"]
PROMPT = "The next train to the coast"


@pytest.fixture
def server(grpc_address):
    with triton.InferenceServerClient(grpc_address) as c:
        yield c


@pytest.fixture(scope="module")
def expected(client, model):
    return client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0).choices[0].text


class Stream:
    """What a stream's callback saw, by request id."""

    def __init__(self, server, headers=None):
        self.server, self.items = server, queue.Queue()
        server.start_stream(callback=lambda result, error: self.items.put((result, error)), headers=headers)

    def send(self, request_id, text=PROMPT, max_tokens=8, model="ensemble", empty_final=False, parameters=None, **more):
        self.server.async_stream_infer(model, text_inputs(triton, text, max_tokens, stream=True, **more),
                                       outputs=outputs(triton, "text_output"), request_id=request_id,
                                       enable_empty_final_response=empty_final, parameters=parameters)

    def next(self):
        return self.items.get(timeout=120)

    def until_final(self, request_ids):
        """Responses of these requests up to the final one of each, in order of arrival."""
        seen, open_ids = [], set(request_ids)
        while open_ids:
            result, error = self.next()
            assert error is None, error
            response = result.get_response()
            seen.append((response.id, result))
            if response.parameters["triton_final_response"].bool_param:
                open_ids.remove(response.id)  # raises at the second one
        return seen


def joined(seen, request_id):
    return "".join(text_of(r) for i, r in seen if i == request_id and r.get_response().outputs)


def test_health_and_metadata(server):
    assert server.is_server_live() and server.is_server_ready()
    metadata = server.get_server_metadata()
    assert metadata.name and metadata.version and "model_repository" in metadata.extensions
    assert server.get_server_metadata(as_json=True)["name"] == metadata.name


@pytest.mark.parametrize("name", MODELS)
def test_each_model_is_described(server, name):
    assert server.is_model_ready(name, "1")
    metadata = server.get_model_metadata(name)
    assert metadata.name == name and list(metadata.versions) == ["1"]
    config = server.get_model_config(name).config
    assert config.name == name
    assert {i.name for i in config.input} == {i.name for i in metadata.inputs}
    types = {i.name: i.datatype for i in metadata.inputs}
    if name == "ensemble":
        assert types["text_input"] == "BYTES" and types["max_tokens"] == "INT32" and types["temperature"] == "FP32"


def test_unknown_model(server):
    """Not ready, as Triton says it, so that a client can poll for a model; everything else is NOT_FOUND."""
    assert not server.is_model_ready("no-such-model")
    for call in (server.get_model_metadata, server.get_model_config, server.get_inference_statistics):
        with pytest.raises(InferenceServerException) as e:
            call("no-such-model")
        assert e.value.status() == "StatusCode.NOT_FOUND" and "no-such-model" in e.value.message()


@pytest.mark.parametrize("shape", [(1,), (1, 1)], ids=["flat", "batched"])
def test_infer(server, expected, shape):
    result = server.infer("ensemble", text_inputs(triton, PROMPT, shape=shape), request_id="ticket-1")
    assert text_of(result).endswith(expected)
    response = result.get_response()
    assert response.id == "ticket-1" and response.model_name == "ensemble" and response.model_version == "1"
    assert len(response.raw_output_contents) == len(response.outputs)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(server, expected, algorithm):
    result = server.infer("ensemble", text_inputs(triton, PROMPT), compression_algorithm=algorithm)
    assert text_of(result).endswith(expected)


def test_async_infer(server, expected):
    done = queue.Queue()
    for i in range(4):
        server.async_infer("ensemble", text_inputs(triton, PROMPT), request_id=str(i),
                           callback=lambda result, error: done.put((result, error)))
    ids = set()
    for _ in range(4):
        result, error = done.get(timeout=120)
        assert error is None and text_of(result).endswith(expected)
        ids.add(result.get_response().id)
    assert ids == {"0", "1", "2", "3"}


def test_cancelled_call(server, metrics):
    done = queue.Queue()
    call = server.async_infer("ensemble", text_inputs(triton, PROMPT, max_tokens=4000, end_id=-1),
                              callback=lambda result, error: done.put(error))
    metrics.wait_for("ekiben_requests_running", 1)
    call.cancel()
    assert "CANCELLED" in str(done.get(timeout=60).status())
    metrics.wait_for("ekiben_requests_running", 0)


def test_deadline(server, metrics):
    with pytest.raises(InferenceServerException) as e:
        server.infer("ensemble", text_inputs(triton, PROMPT, max_tokens=4000, end_id=-1), client_timeout=0.5)
    assert "DEADLINE_EXCEEDED" in e.value.status()
    metrics.wait_for("ekiben_requests_running", 0)


def test_stream(server, expected):
    stream = Stream(server)
    stream.send("a")
    seen = stream.until_final(["a"])
    assert joined(seen, "a") == expected and len(seen) > 2
    server.stop_stream()


def test_streams_interleave(server, expected):
    stream = Stream(server)
    ids = [str(i) for i in range(6)]
    for i in ids:
        stream.send(i, max_tokens=32)
    seen = stream.until_final(ids)
    order = [i for i, _ in seen]
    assert order != sorted(order)  # they ran side by side
    assert len({joined(seen, i) for i in ids}) == 1 and joined(seen, "0").startswith(expected)
    server.stop_stream()


def test_stream_mixes_models(server, expected):
    stream = Stream(server)
    stream.send("e")
    stream.send("b", model="tensorrt_llm_bls", empty_final=True)  # its final response is an empty one
    seen = stream.until_final(["e", "b"])
    assert joined(seen, "e") == joined(seen, "b") == expected
    assert {r.get_response().model_name for _, r in seen} == {"ensemble", "tensorrt_llm_bls"}
    server.stop_stream()


def test_empty_final_only_after_opting_in(server, expected):
    """TensorRT-LLM's backend puts the final flag on its last tokens, its BLS model sends the flag alone afterwards."""
    stream = Stream(server)
    stream.send("in", model="tensorrt_llm_bls", empty_final=True)
    seen = stream.until_final(["in"])
    assert not seen[-1][1].get_response().outputs and joined(seen, "in") == expected
    for opted_in in (True, False):
        stream.send("ensemble", empty_final=opted_in)
        seen = stream.until_final(["ensemble"])
        assert all(r.get_response().outputs for _, r in seen) and joined(seen, "ensemble") == expected
    stream.send("out", model="tensorrt_llm_bls")
    server.stop_stream()  # half-closes, and returns when all is said
    seen = [stream.items.get_nowait() for _ in range(stream.items.qsize())]
    assert all(error is None for _, error in seen)
    assert joined([("out", r) for r, _ in seen], "out") == expected
    assert all(r.get_response().outputs and not r.get_response().parameters["triton_final_response"].bool_param
               for r, _ in seen)


def test_error_leaves_the_stream_open(server, expected):
    stream = Stream(server)
    stream.send("bad", max_tokens=0)
    result, error = stream.next()
    assert result is None and "max_tokens" in error.message()
    stream.send("good")
    assert joined(stream.until_final(["good"]), "good") == expected
    server.stop_stream()


def test_grpc_error_closes_the_stream(server):
    stream = Stream(server, headers={"triton_grpc_error": "true"})
    stream.send("bad", model="no-such-model")
    _, error = stream.next()
    assert error.status() == "StatusCode.NOT_FOUND"
    server.stop_stream()


def test_stopping_cancels(server, metrics):
    stream = Stream(server)
    for i in range(3):
        stream.send(str(i), max_tokens=4000, end_id=-1)
    metrics.wait_for("ekiben_requests_running", 3)
    server.stop_stream(cancel_requests=True)
    metrics.wait_for("ekiben_requests_running", 0)
    metrics.wait_for("ekiben_kv_cache_usage_ratio", 0)


def test_stop_request_by_id(server, metrics, client, model):
    """A second request of the same id with `stop` cancels the first, as the tensorrt_llm model has it."""
    stream = Stream(server)
    tokens = np.array([[504, 3575, 282]], np.int32)
    ids = triton.InferInput("input_ids", tokens.shape, "INT32")
    ids.set_data_from_numpy(tokens)
    inputs = [ids, tensor(triton, "input_lengths", 3), tensor(triton, "request_output_len", 4000),
              tensor(triton, "streaming", True)]
    server.async_stream_infer("tensorrt_llm", inputs, request_id="long", enable_empty_final_response=True)
    metrics.wait_for("ekiben_requests_running", 1)
    server.async_stream_infer("tensorrt_llm", inputs + [tensor(triton, "stop", True)], request_id="long",
                              enable_empty_final_response=True)
    metrics.wait_for("ekiben_requests_running", 0)
    finals = 0
    while finals < 2:
        result, error = stream.next()
        assert error is None, error
        finals += result.get_response().parameters["triton_final_response"].bool_param
    server.stop_stream()


def test_two_streams_of_two_clients(grpc_address, expected):
    texts = []

    def run():
        with triton.InferenceServerClient(grpc_address) as one:
            stream = Stream(one)
            stream.send("x")
            texts.append(joined(stream.until_final(["x"]), "x"))
            one.stop_stream()

    threads = [threading.Thread(target=run) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert texts == [expected] * 4


def test_statistics(server):
    def counts():
        (one,) = server.get_inference_statistics("ensemble").model_stats
        return one.inference_count, one.inference_stats.success.count, one.inference_stats.fail.count

    before = counts()
    server.infer("ensemble", text_inputs(triton, PROMPT, max_tokens=2))
    with pytest.raises(InferenceServerException):
        server.infer("ensemble", text_inputs(triton, PROMPT, max_tokens=0))
    after = counts()
    assert after[0] == before[0] + 1 and after[1] == before[1] + 1
    stream = Stream(server)
    stream.send("s", max_tokens=4)
    stream.until_final(["s"])
    server.stop_stream()
    (one,) = server.get_inference_statistics("ensemble").model_stats
    assert one.inference_count == after[0] + 1
    assert one.response_stats["0"].success.count >= 1


def test_repository_index_and_control(server):
    index = {m.name: m.state for m in server.get_model_repository_index().models}
    assert all(index[name] == "READY" for name in MODELS)
    with pytest.raises(InferenceServerException):
        server.unload_model("ensemble")
    assert server.is_model_ready("ensemble")


def test_settings(server):
    log = server.get_log_settings(as_json=True)["settings"]
    assert "log_verbose_level" in log
    assert server.get_trace_settings(as_json=True)["settings"]["trace_level"]


def test_shared_memory(server):
    try:
        assert not server.get_system_shared_memory_status(as_json=True).get("regions")
    except InferenceServerException as e:
        assert e.status() == "StatusCode.UNIMPLEMENTED"
    with pytest.raises(InferenceServerException) as e:
        server.register_cuda_shared_memory("region", b"x" * 64, 0, 1024)
    assert "UNIMPLEMENTED" in e.value.status()


def test_bad_tensors(server):
    short = triton.InferInput("max_tokens", [1, 1], "INT32")
    short.set_data_from_numpy(np.array([[8]], np.int32))
    short._raw_content = b"\x08\x00"  # two bytes of four
    with pytest.raises(InferenceServerException) as e:
        server.infer("ensemble", [tensor(triton, "text_input", "x"), short])
    assert e.value.status() == "StatusCode.INVALID_ARGUMENT" and "max_tokens" in e.value.message()


def test_health_service(grpc_address):
    """grpc.health.v1 by hand: the message has one string in, one enum out."""
    with grpc.insecure_channel(grpc_address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=30) == b"\x08\x01"  # SERVING
        with pytest.raises(grpc.RpcError) as e:
            check(b"\x0a\x04nope", timeout=30)
        assert e.value.code() == grpc.StatusCode.NOT_FOUND


def test_typed_contents(grpc_address, expected):
    """Not tritonclient's own form: tensors in `contents`, as other clients send them; the answer is raw all the same."""
    request = service_pb2.ModelInferRequest(model_name="ensemble", id="typed")
    text = request.inputs.add(name="text_input", datatype="BYTES", shape=[1, 1])
    text.contents.bytes_contents.append(PROMPT.encode())
    count = request.inputs.add(name="max_tokens", datatype="INT32", shape=[1, 1])
    count.contents.int_contents.append(8)
    with grpc.insecure_channel(grpc_address) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer",
                                    request_serializer=service_pb2.ModelInferRequest.SerializeToString,
                                    response_deserializer=service_pb2.ModelInferResponse.FromString)
        response = infer(request, timeout=120)
    assert text_of(triton.InferResult(response)).endswith(expected)
