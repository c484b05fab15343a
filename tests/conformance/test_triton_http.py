"""tritonclient.http against /v2: health, metadata, config, infer in binary and JSON, compression, statistics,
repository, settings; and its asyncio form."""
import asyncio

import gevent  # the client's own engine; joined so that its pool does not outlive the test
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from triton_text import outputs, tensor, text_inputs, text_of

MODELS = ["ensemble", "tensorrt_llm_bls", "preprocessing", "tensorrt_llm", "postprocessing"]
PROMPT = "The next train to the coast"


@pytest.fixture(scope="module")
def server(url):
    with triton.InferenceServerClient(url.removeprefix("http://"), network_timeout=120, connection_timeout=120) as c:
        yield c


@pytest.fixture(scope="module")
def expected(client, model):
    """What OpenAI's route answers for the same greedy request."""
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0)
    return answer.choices[0].text


def test_health_and_server_metadata(server):
    assert server.is_server_live() and server.is_server_ready()
    metadata = server.get_server_metadata()
    assert metadata["name"] and metadata["version"] and "binary_tensor_data" in metadata["extensions"]


@pytest.mark.parametrize("name", MODELS)
def test_each_model_is_described(server, name):
    assert server.is_model_ready(name) and server.is_model_ready(name, "1")
    metadata = server.get_model_metadata(name)
    assert metadata["name"] == name and metadata["versions"] == ["1"] and metadata["inputs"] and metadata["outputs"]
    config = server.get_model_config(name)
    assert config["name"] == name
    assert {i["name"] for i in config["input"]} == {i["name"] for i in metadata["inputs"]}
    assert {o["name"] for o in config["output"]} == {o["name"] for o in metadata["outputs"]}
    assert isinstance(config["model_transaction_policy"]["decoupled"], bool)


def test_unknown_model(server):
    assert not server.is_model_ready("no-such-model")
    for call in (server.get_model_metadata, server.get_model_config, server.get_inference_statistics):
        with pytest.raises(InferenceServerException) as e:
            call("no-such-model")
        assert e.value.status() == "404" and "no-such-model" in e.value.message()


@pytest.mark.parametrize("shape", [(1,), (1, 1)], ids=["flat", "batched"])
@pytest.mark.parametrize("name", ["ensemble", "tensorrt_llm_bls"])
def test_infer(server, expected, name, shape):
    result = server.infer(name, text_inputs(triton, PROMPT, shape=shape, temperature=0.0), request_id="ticket-1",
                          outputs=outputs(triton, "text_output"))
    assert text_of(result).endswith(expected)
    response = result.get_response()
    assert response["id"] == "ticket-1" and response["model_name"] == name and response["model_version"] == "1"
    assert [o["name"] for o in response["outputs"]] == ["text_output"]


def test_json_tensors_say_the_same(server, expected):
    inputs = []
    for name, value, dtype, kind in (("text_input", [[PROMPT.encode()]], np.object_, "BYTES"),
                                     ("max_tokens", [[8]], np.int32, "INT32")):
        one = triton.InferInput(name, [1, 1], kind)
        one.set_data_from_numpy(np.array(value, dtype=dtype), binary_data=False)
        inputs.append(one)
    answer = server.infer("ensemble", inputs, outputs=[triton.InferRequestedOutput("text_output", binary_data=False)])
    assert text_of(answer).endswith(expected)
    assert "data" in answer.get_output("text_output") and "parameters" not in answer.get_output("text_output")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_both_ways(server, expected, algorithm):
    result = server.infer("ensemble", text_inputs(triton, PROMPT), request_compression_algorithm=algorithm,
                          response_compression_algorithm=algorithm)
    assert text_of(result).endswith(expected)


def test_exclude_input_and_counts(server, expected):
    result = server.infer("ensemble", text_inputs(triton, PROMPT, exclude_input_in_output=True,
                                                  return_num_input_tokens=True, return_num_output_tokens=True))
    assert text_of(result) == expected
    assert result.as_numpy("num_output_tokens").flatten()[0] == 8
    assert result.as_numpy("num_input_tokens").flatten()[0] > 1


def test_log_probs(server):
    result = server.infer("ensemble", text_inputs(triton, PROMPT, return_log_probs=True, temperature=0.0))
    values = result.as_numpy("output_log_probs").flatten()
    assert len(values) == 8 and (values <= 0).all()
    assert result.as_numpy("cum_log_probs").flatten()[0] == pytest.approx(values.sum(), abs=1e-3)


def test_seeds_in_both_spellings(server):
    def draw(**seed):
        return text_of(server.infer("ensemble", text_inputs(triton, PROMPT, max_tokens=16, temperature=1.0, top_k=50,
                                                            **seed)))

    assert draw(random_seed=7) == draw(seed=7)
    assert len({draw(seed=s) for s in (1, 2, 3)}) > 1


def test_stop_words(server, expected):
    stop = expected[len(expected) // 2:][:3]
    result = server.infer("ensemble", text_inputs(triton, PROMPT, exclude_input_in_output=True, stop_words=[stop]))
    assert len(text_of(result)) < len(expected)


def test_pipeline_by_hand(server, expected):
    """preprocessing, tensorrt_llm and postprocessing called one after the other are the ensemble."""
    before = server.infer("preprocessing", [tensor(triton, "QUERY", PROMPT), tensor(triton, "REQUEST_OUTPUT_LEN", 8)])
    ids = before.as_numpy("INPUT_ID").astype(np.int32).reshape(1, -1)
    inputs = []
    for name, data in (("input_ids", ids), ("input_lengths", np.array([[ids.shape[1]]], np.int32)),
                       ("request_output_len", np.array([[8]], np.int32))):
        one = triton.InferInput(name, data.shape, "INT32")
        one.set_data_from_numpy(data)
        inputs.append(one)
    tokens = server.infer("tensorrt_llm", inputs + [tensor(triton, "exclude_input_in_output", True)])
    made, length = tokens.as_numpy("output_ids"), tokens.as_numpy("sequence_length")
    assert made.ndim == 3 and length.flatten()[0] == 8
    inputs = []
    for name, data in (("TOKENS_BATCH", made.astype(np.int32)), ("SEQUENCE_LENGTH", length.astype(np.int32).reshape(1, -1))):
        one = triton.InferInput(name, data.shape, "INT32")
        one.set_data_from_numpy(data)
        inputs.append(one)
    after = server.infer("postprocessing", inputs)
    assert after.as_numpy("OUTPUT").flatten()[0].decode() == expected


def test_async_infer(server, expected):
    calls = [server.async_infer("ensemble", text_inputs(triton, PROMPT)) for _ in range(4)]
    assert all(text_of(call.get_result(timeout=120)).endswith(expected) for call in calls)
    gevent.sleep(0)


def test_asyncio_client(url, expected):
    async def work():
        async with triton_aio.InferenceServerClient(url.removeprefix("http://")) as client:
            assert await client.is_server_live() and await client.is_model_ready("ensemble")
            results = await asyncio.gather(*(client.infer("ensemble", text_inputs(triton_aio, PROMPT))
                                             for _ in range(4)))
            statistics = await client.get_inference_statistics("ensemble")
            return [text_of(r) for r in results], statistics

    texts, statistics = asyncio.run(work())
    assert all(text.endswith(expected) for text in texts)
    assert statistics["model_stats"][0]["name"] == "ensemble"


def counted(server, name="ensemble"):
    (one,) = server.get_inference_statistics(name, "1")["model_stats"]
    return one["inference_count"], one["inference_stats"]["success"]["count"], one["inference_stats"]["fail"]["count"]


def test_statistics_count(server):
    count, success, fail = counted(server)
    for _ in range(3):
        server.infer("ensemble", text_inputs(triton, PROMPT, max_tokens=2))
    assert counted(server) == (count + 3, success + 3, fail)
    (one,) = server.get_inference_statistics("ensemble")["model_stats"]
    stats = one["inference_stats"]
    for name in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert stats[name]["count"] >= 3, name
    assert stats["success"]["ns"] >= stats["compute_infer"]["ns"] > 0
    assert {m["name"] for m in server.get_inference_statistics()["model_stats"]} >= set(MODELS)


def test_bad_requests_name_the_field(server):
    bad = [([tensor(triton, "max_tokens", 8)], "text_input"),
           ([tensor(triton, "text_input", "x")], "max_tokens"),
           (text_inputs(triton, "x", max_tokens=0), "max_tokens"),
           (text_inputs(triton, "x") + [tensor(triton, "no_such_input", 1)], "no_such_input"),
           (text_inputs(triton, "x", temperature=-1.0), "temperature")]
    for inputs, word in bad:
        with pytest.raises(InferenceServerException) as e:
            server.infer("ensemble", inputs)
        assert e.value.status() == "400" and word in e.value.message()
    with pytest.raises(InferenceServerException) as e:
        server.infer("ensemble", text_inputs(triton, "x"), outputs=outputs(triton, "no_such_output"))
    assert e.value.status() == "400" and "no_such_output" in e.value.message()


def test_repository_index(server):
    index = {m["name"]: m for m in server.get_model_repository_index()}
    assert set(MODELS) <= set(index) and all(index[name]["state"] == "READY" for name in MODELS)


def test_control_is_off_unless_enabled(server):
    for call in (lambda: server.unload_model("ensemble"), lambda: server.load_model("ensemble")):
        with pytest.raises(InferenceServerException):
            call()
    assert server.is_model_ready("ensemble")


def test_log_settings(server, start_server):
    """Anyone may read them; they change on a server whose routes for admins are open."""
    now = server.get_log_settings()
    assert isinstance(now["log_verbose_level"], int) and isinstance(now["log_info"], bool)
    with pytest.raises(InferenceServerException) as e:
        server.update_log_settings({"log_info": not now["log_info"]})
    assert e.value.status() == "403" and server.get_log_settings() == now
    with start_server("--enable_admin_routes") as own:
        with triton.InferenceServerClient(own.url.removeprefix("http://")) as admin:
            before = admin.get_log_settings()
            changed = admin.update_log_settings({"log_info": not before["log_info"]})
            assert changed == {**before, "log_info": not before["log_info"]} == admin.get_log_settings()
            assert admin.update_log_settings({"log_info": before["log_info"]}) == before


def test_trace_settings_can_be_read(server):
    assert "trace_level" in server.get_trace_settings()
    assert "trace_level" in server.get_trace_settings("ensemble")


def test_shared_memory_is_refused_or_listed(server):
    try:
        assert server.get_system_shared_memory_status() == []
    except InferenceServerException as e:
        assert "shared memory" in e.message()
