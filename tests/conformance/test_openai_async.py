"""The asynchronous openai SDK, and what both do when a request fails: retries and the classes of errors."""
import asyncio
import time

import httpx
import openai
import pytest

EXACT = {"ignore_eos": True}
USER = [{"role": "user", "content": "Name a station."}]


def run(url, work, **kwargs):
    async def call():
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="EMPTY", max_retries=0, timeout=120,
                                      **kwargs) as client:
            return await work(client)

    return asyncio.run(call())


async def chat_text(client, model, **kwargs):
    answer = await client.chat.completions.create(model=model, messages=USER, max_tokens=16, temperature=0,
                                                  extra_body=EXACT, **kwargs)
    return answer.choices[0].message.content


async def streamed_text(client, model, prompt, max_tokens=16):
    text = ""
    stream = await client.completions.create(model=model, prompt=prompt, max_tokens=max_tokens, temperature=0,
                                             stream=True, extra_body=EXACT)
    async for chunk in stream:
        text += chunk.choices[0].text
    return text


def test_models(url, model):
    async def work(client):
        return [m.id async for m in client.models.list()], (await client.models.retrieve(model)).id

    listed, one = run(url, work)
    assert model in listed and one == model


def test_chat_equals_the_sync_client(url, client, model):
    sync = client.chat.completions.create(model=model, messages=USER, max_tokens=16, temperature=0, extra_body=EXACT)
    assert run(url, lambda c: chat_text(c, model)) == sync.choices[0].message.content


def test_streams_side_by_side(url, model):
    async def work(client):
        alone = [await streamed_text(client, model, f"Track {i}") for i in range(8)]
        together = await asyncio.gather(*(streamed_text(client, model, f"Track {i}") for i in range(8)))
        return alone, together

    alone, together = run(url, work)
    assert alone == together and all(alone)


def test_cancelled_task_frees_its_slot(url, model, metrics):
    async def work(client):
        task = asyncio.create_task(streamed_text(client, model, "A long way", max_tokens=2000))
        while metrics.value("ekiben_requests_running") == 0 and not task.done():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(url, work)
    metrics.wait_for("ekiben_requests_running", 0)
    metrics.wait_for("ekiben_requests_in_progress", 0)


def test_with_raw_response(url, model):
    async def work(client):
        return await client.chat.completions.with_raw_response.create(model=model, messages=USER, max_tokens=2,
                                                                      extra_headers={"x-request-id": "trip-7"})

    raw = run(url, work)
    assert raw.status_code == 200 and raw.request_id and raw.parse().usage.completion_tokens >= 1


def test_with_streaming_response(url, model):
    async def work(client):
        lines = []
        async with client.completions.with_streaming_response.create(
                model=model, prompt="x", max_tokens=3, stream=True, extra_body=EXACT) as response:
            async for line in response.iter_lines():
                lines.append(line)
        return lines

    lines = [line for line in run(url, work) if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: {") for line in lines[:-1])


def test_error_classes(url, model):
    async def work(client):
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="no-such-model", messages=USER)
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model=model, messages=USER, temperature=9)
        assert bad.value.param == "temperature"

    run(url, work)


def test_retry_after_a_full_server(start_server):
    """A second call finds the server full (429 with retry-after), waits as told and succeeds once the first has left."""
    with start_server("--traffic.max_concurrency", 1) as server:
        body = {"model": "m", "prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="EMPTY", max_retries=4, timeout=60)
        with httpx.Client(base_url=server.url, timeout=60) as first:
            with first.stream("POST", "/v1/completions", json=body) as held:
                chunks = held.iter_raw()
                next(chunks)
                with pytest.raises(openai.RateLimitError) as full:
                    client.with_options(max_retries=0).completions.create(model="m", prompt="x", max_tokens=1)
                assert int(full.value.response.headers["retry-after"]) >= 1

                async def second():
                    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="EMPTY", max_retries=4) as later:
                        call = asyncio.create_task(later.completions.create(model="m", prompt="x", max_tokens=1))
                        await asyncio.sleep(0.3)
                        assert not call.done()
                        held.close()
                        return await call

                begin = time.monotonic()
                answer = asyncio.run(second())
        assert answer.usage.completion_tokens == 1
        assert time.monotonic() - begin >= 0.5  # it was turned away at least once


def test_retries_end_in_the_last_error(start_server):
    with start_server("--traffic.max_concurrency", 1) as server:
        body = {"model": "m", "prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="EMPTY", max_retries=1, timeout=60)
        with httpx.Client(base_url=server.url, timeout=60) as first:
            with first.stream("POST", "/v1/completions", json=body) as held:
                chunks = held.iter_raw()
                next(chunks)
                with pytest.raises(openai.RateLimitError):
                    client.completions.create(model="m", prompt="x", max_tokens=1)


def test_keys(start_server):
    with start_server("--api_key", "first", "--api_key", "second") as server:
        for key in ("first", "second"):
            assert openai.OpenAI(base_url=server.url + "/v1", api_key=key).models.list().data[0].id == "m"
        for key in ("third", "firs", "firsts"):
            with pytest.raises(openai.AuthenticationError) as refused:
                openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0).models.list()
            assert set(refused.value.body) == {"message", "type", "param", "code"}
