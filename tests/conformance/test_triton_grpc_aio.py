"""tritonclient.grpc.aio: what an asyncio service in front of us uses (infer, stream_infer, cancel, statistics)."""
import asyncio

import grpc
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from triton_text import outputs, text_inputs, text_of

PROMPT = "The next train to the coast"


@pytest.fixture(scope="module")
def expected(client, model):
    return client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0).choices[0].text


def run(address, work):
    async def call():
        async with triton.InferenceServerClient(address) as client:
            return await asyncio.wait_for(work(client), 120)

    return asyncio.run(call())


async def requests(*ids, text=PROMPT, max_tokens=8, **more):
    for request_id in ids:
        yield {"model_name": "ensemble", "inputs": text_inputs(triton, text, max_tokens, stream=True, **more),
               "outputs": outputs(triton, "text_output"), "request_id": request_id}


def test_calls(grpc_address, expected):
    async def work(client):
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("ensemble")
        metadata = await client.get_model_metadata("ensemble", as_json=True)
        config = await client.get_model_config("ensemble", as_json=True)
        index = await client.get_model_repository_index(as_json=True)
        statistics = await client.get_inference_statistics("ensemble", as_json=True)
        return metadata, config, index, statistics, await client.infer("ensemble", text_inputs(triton, PROMPT))

    metadata, config, index, statistics, result = run(grpc_address, work)
    assert metadata["name"] == config["config"]["name"] == statistics["model_stats"][0]["name"] == "ensemble"
    assert "ensemble" in [m["name"] for m in index["models"]]
    assert text_of(result).endswith(expected)


def test_stream_ends_by_half_close(grpc_address, expected):
    """The iterator's end closes our side; the server answers what it has and ends the stream by itself."""
    async def work(client):
        pieces = []
        async for result, error in client.stream_infer(inputs_iterator=requests("1")):
            assert error is None
            pieces.append(text_of(result))
        return pieces

    pieces = run(grpc_address, work)
    assert "".join(pieces) == expected and len(pieces) > 2


def test_several_requests_on_a_stream(grpc_address, expected):
    async def work(client):
        texts = {}
        async for result, error in client.stream_infer(inputs_iterator=requests("1", "2", "3")):
            assert error is None
            response = result.get_response()
            texts[response.id] = texts.get(response.id, "") + text_of(result)
        return texts

    assert run(grpc_address, work) == {"1": expected, "2": expected, "3": expected}


def test_error_in_the_stream(grpc_address, expected):
    async def both():
        async for request in requests("bad", max_tokens=0):
            yield request
        async for request in requests("good"):
            yield request

    async def work(client):
        text, errors = "", []
        async for result, error in client.stream_infer(inputs_iterator=both()):
            if error is not None:
                errors.append(error)
            else:
                text += text_of(result)
        return text, errors

    text, errors = run(grpc_address, work)
    assert text == expected and len(errors) == 1 and isinstance(errors[0], InferenceServerException)


def test_cancel(grpc_address, metrics):
    async def work(client):
        stream = client.stream_infer(inputs_iterator=requests("1", "2", max_tokens=4000, end_id=-1))
        async for _ in stream:
            break
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            async for _ in stream:
                pass

    run(grpc_address, work)
    metrics.wait_for("ekiben_requests_running", 0)
    metrics.wait_for("ekiben_kv_cache_usage_ratio", 0)


def test_stream_timeout(grpc_address, metrics):
    async def work(client):
        with pytest.raises(grpc.RpcError) as e:  # this client words errors of calls only
            async for _ in client.stream_infer(inputs_iterator=requests("1", max_tokens=4000, end_id=-1),
                                               stream_timeout=1):
                pass
        return e.value.code()

    assert run(grpc_address, work) == grpc.StatusCode.DEADLINE_EXCEEDED
    metrics.wait_for("ekiben_requests_running", 0)


def test_many_streams(grpc_address, expected):
    async def one(client):
        text = ""
        async for result, error in client.stream_infer(inputs_iterator=requests("1")):
            assert error is None
            text += text_of(result)
        return text

    async def work(client):
        return await asyncio.gather(*(one(client) for _ in range(32)))

    assert run(grpc_address, work) == [expected] * 32
