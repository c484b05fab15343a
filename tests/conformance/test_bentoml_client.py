"""BentoML's own clients (SyncHTTPClient, AsyncHTTPClient) against /generate: discovery by schema, streams, errors."""
import asyncio

import bentoml
import httpx
import pytest
from bentoml.exceptions import BentoMLException, InvalidArgument

PROMPT = {"prompt": "Repeat: 駅弁 🍱 は 美味しい", "max_tokens": 128}


@pytest.fixture(scope="module")
def expected(http):
    with http.stream("POST", "/generate", json=PROMPT) as response:
        return "".join(response.iter_text())


def test_discovery(url):
    with bentoml.SyncHTTPClient(url) as client:
        assert client.is_ready() and "generate" in client.endpoints
        with pytest.raises(TypeError):
            list(client.generate(nobody=1))
        with pytest.raises(AttributeError):
            client.no_such_api()


def test_stream(url, expected):
    with bentoml.SyncHTTPClient(url) as client:
        pieces = list(client.generate(**PROMPT))
        assert len(pieces) > 1 and "".join(pieces) == expected
        assert "".join(client.generate(PROMPT["prompt"], max_tokens=128)) == expected  # by position


def test_async_stream(url, expected):
    async def one(client):
        return "".join([piece async for piece in client.generate(**PROMPT)])

    async def work():
        async with bentoml.AsyncHTTPClient(url) as client:
            return await asyncio.gather(*(one(client) for _ in range(4)))

    assert asyncio.run(work()) == [expected] * 4


def test_leaving_a_stream(url, metrics):
    async def work():
        async with bentoml.AsyncHTTPClient(url) as client:
            stream = client.generate(prompt="A long story", max_tokens=1024)
            async for _ in stream:
                break
            await stream.aclose()

    asyncio.run(work())
    metrics.wait_for("ekiben_requests_in_progress", 0)
    metrics.wait_for("ekiben_requests_running", 0)


def test_validation_error(url):
    with bentoml.SyncHTTPClient(url) as client:
        with pytest.raises(InvalidArgument) as e:
            list(client.generate(prompt="x", max_tokens=1))
        assert "greater than or equal to 128" in str(e.value)


def test_too_many_requests(start_server):
    with start_server("--traffic.max_concurrency", 1) as server, bentoml.SyncHTTPClient(server.url) as client:
        with httpx.Client(base_url=server.url, timeout=60) as first:
            with first.stream("POST", "/generate", json={"prompt": "Once"}) as held:
                chunks = held.iter_raw()
                next(chunks)
                with pytest.raises(BentoMLException) as e:
                    list(client.generate(prompt="x", max_tokens=128))
                assert e.value.error_code == 429 and "Too many requests" in str(e.value)


def test_token(start_server):
    with start_server("--api_key", "secret") as server:
        with bentoml.SyncHTTPClient(server.url, token="secret") as client:
            assert "".join(client.generate(prompt="x", max_tokens=128))
        with bentoml.SyncHTTPClient(server.url, token="wrong") as client:
            with pytest.raises(BentoMLException) as e:
                list(client.generate(prompt="x", max_tokens=128))
            assert e.value.error_code == 401
