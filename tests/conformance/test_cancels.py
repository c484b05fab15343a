"""Cancels at random moments on every surface: HTTP clients that close or reset, gRPC calls and streams that are cancelled.
Afterwards nothing is held, and the statistics of the KServe models, which two wires and two formats report, agree.

EKIBEN_CANCELS: how many (default 400; the full check is 10000). The server's backend is `fake`: tokens cost nothing, so that
cancels meet requests in every state."""
import asyncio
import contextlib
import json
import os
import random
import time

import grpc
import httpx
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from triton_text import outputs, text_inputs

COUNT = int(os.environ.get("EKIBEN_CANCELS", "400"))
AT_ONCE = 48
TOKENS = 3000  # about the time of a long cancel on the fake backend
HTTP_CALLS = {
    "completions": ("/v1/completions", {"model": "m", "prompt": "Once", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}),
    "chat": ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "Once"}], "stream": True,
                                      "max_tokens": TOKENS, "ignore_eos": True, "n": 2}),
    "whole": ("/v1/completions", {"model": "m", "prompt": ["a", "b"], "max_tokens": TOKENS, "ignore_eos": True}),
    "bento": ("/generate", {"prompt": "Once", "max_tokens": 1024}),
    "v2 stream": ("/v2/models/ensemble/generate_stream", {"text_input": "Once", "max_tokens": TOKENS, "stream": True}),
    "v2 whole": ("/v2/models/tensorrt_llm_bls/generate", {"text_input": "Once", "max_tokens": TOKENS}),
    "v2 infer": ("/v2/models/ensemble/infer", {"inputs": [
        {"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "data": ["Once"]},
        {"name": "max_tokens", "shape": [1, 1], "datatype": "INT32", "data": [TOKENS]}]}),
}
KINDS = [*HTTP_CALLS, "grpc stream", "grpc stream of three", "grpc stream, half-closed", "grpc call"]


async def leave_http(address, kind, moment, abort):
    path, body = HTTP_CALLS[kind]
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                 .encode() + data)
    with contextlib.suppress(asyncio.TimeoutError):
        async with asyncio.timeout(moment):
            while await reader.read(4096):
                pass
    if abort:
        writer.transport.abort()
    else:
        writer.close()


async def requests(count, stay_open):
    for i in range(count):
        yield {"model_name": "ensemble", "request_id": str(i), "outputs": outputs(triton, "text_output"),
               "inputs": text_inputs(triton, "Once", TOKENS, stream=True)}
    if stay_open:
        await asyncio.Event().wait()


async def leave_grpc(client, kind, moment):
    if kind == "grpc call":
        call = asyncio.create_task(client.infer("ensemble", text_inputs(triton, "Once", TOKENS)))
        await asyncio.wait([call], timeout=moment)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError, InferenceServerException):
            await call
        return
    stream = client.stream_infer(requests(3 if "three" in kind else 1, stay_open="half-closed" not in kind))
    with contextlib.suppress(asyncio.TimeoutError, asyncio.CancelledError, InferenceServerException, grpc.RpcError):
        async with asyncio.timeout(moment):
            async for _ in stream:
                pass
    stream.cancel()


async def leave_many(server, count, seed):
    rng = random.Random(seed)
    slots = asyncio.Semaphore(AT_ONCE)
    made = dict.fromkeys(KINDS, 0)
    async with triton.InferenceServerClient(server.grpc) as client:

        async def one(kind, moment, abort):
            async with slots:
                if kind in HTTP_CALLS:
                    await leave_http(("127.0.0.1", server.port), kind, moment, abort)
                else:
                    await leave_grpc(client, kind, moment)

        work = []
        for _ in range(count):
            kind = rng.choice(KINDS)
            made[kind] += 1
            work.append(one(kind, rng.expovariate(1 / 0.03), rng.random() < 0.3))
        await asyncio.gather(*work)
    return made


def settle(server):
    for name in ("ekiben_requests_in_progress", "ekiben_requests_running", "ekiben_requests_waiting",
                 "ekiben_kv_cache_usage_ratio", "nv_inference_pending_request_count",
                 "bentoml_service_request_in_progress"):
        server.metrics.wait_for(name, 0)
    server.metrics.wait_for("nv_trt_llm_kv_cache_block_metrics", 0, kv_cache_block_type="used")
    server.metrics.wait_for("nv_trt_llm_request_metrics", 0, request_type="active")


def statistics(server):
    answer = httpx.get(server.url + "/v2/models/stats", timeout=60).json()["model_stats"]
    return {m["name"]: m for m in answer}


def rss_kib(server):
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def text_of_one(server):
    body = {"text_input": "The train", "max_tokens": 16, "temperature": 0}
    return httpx.post(server.url + "/v2/models/ensemble/generate", json=body, timeout=60).json()["text_output"]


@pytest.fixture(scope="module")
def server(start_server):
    with start_server("--device", "fake", "--max_batch_size", 32, "--max_tokens_in_paged_kv_cache", 131072) as one:
        yield one


def test_everything_comes_back(server):
    before_text = text_of_one(server)
    asyncio.run(leave_many(server, min(COUNT, 200), seed=1))  # warm: pools, caches, allocator
    settle(server)
    rss, begin = rss_kib(server), time.monotonic()
    made = asyncio.run(leave_many(server, COUNT, seed=2))
    seconds = time.monotonic() - begin
    settle(server)
    assert sum(made.values()) == COUNT
    grown = rss_kib(server) - rss
    found = statistics(server)
    ended = {name: (m["inference_stats"]["success"]["count"], m["inference_stats"]["fail"]["count"])
             for name, m in found.items()}
    print(f"{COUNT} cancels in {seconds:.1f} s: {made}; successes and failures {ended}; RSS {rss} KiB, grown by {grown} KiB")
    assert grown < rss * 0.1 + 16384
    assert text_of_one(server) == before_text


def test_statistics_agree(server):
    """After the cancels: the metrics, both wires' statistics and their parts tell one story."""
    found = statistics(server)
    import tritonclient.grpc as blocking

    with blocking.InferenceServerClient(server.grpc) as client:
        over_grpc = {m.name: m for m in client.get_inference_statistics().model_stats}
    for name in ("ensemble", "tensorrt_llm_bls"):
        stats = found[name]["inference_stats"]
        success, fail = stats["success"]["count"], stats["fail"]["count"]
        assert over_grpc[name].inference_stats.success.count == success
        assert over_grpc[name].inference_stats.fail.count == fail
        assert server.metrics.value("nv_inference_request_success", model=name) == success
        assert server.metrics.value("nv_inference_request_failure", model=name) == fail
        assert server.metrics.value("nv_inference_request_failure", model=name, reason="CANCELED") > 0
        assert found[name]["inference_count"] == server.metrics.value("nv_inference_count", model=name) == success
        assert server.metrics.value("nv_inference_pending_request_count", model=name) == 0
        assert stats["queue"]["count"] == stats["compute_infer"]["count"] == success
