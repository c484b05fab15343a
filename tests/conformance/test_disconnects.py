"""Clients that leave in the middle of their answer, many of them: everything they held comes back.

EKIBEN_DISCONNECTS: how many (default 200; the issue's check is 10000). EKIBEN_PID: the server's process, whose memory is
then watched too."""
import asyncio
import json
import os
import random
import time
import urllib.parse

COUNT = int(os.environ.get("EKIBEN_DISCONNECTS", "200"))
AT_ONCE = 32
SETTLE_SECONDS = 30  # a busy machine needs more than the moment it takes alone


def gauge(http, name):
    for line in http.get("/metrics").text.splitlines():
        if line.startswith(name + "{"):
            return float(line.split()[-1])
    raise AssertionError(name)


def rss_kib():
    pid = os.environ.get("EKIBEN_PID")
    if pid is None:
        return 0
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


async def leave(address, request, rng):
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request)
    kind = rng.randrange(4)
    if kind > 0:  # 0: before any answer
        await reader.read(100)
    if kind == 2:
        await reader.read(2000)
    if kind == 3:
        writer.transport.abort()
    else:
        writer.close()


async def leave_many(address, model, count, seed):
    rng = random.Random(seed)
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(i):
        body = json.dumps({"model": model, "prompt": f"Story {i % 50} begins", "max_tokens": 500, "ignore_eos": True,
                           "stream": i % 5 != 0}).encode()
        head = (f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n").encode()
        async with slots:
            if i % 5 == 0:  # a whole answer is never begun before its end: leave while it is being made
                reader, writer = await asyncio.open_connection(*address)
                writer.write(head + body)
                await asyncio.sleep(rng.random() * 0.01)
                writer.close()
            else:
                await leave(address, head + body, rng)

    await asyncio.gather(*(one(i) for i in range(count)))


def settle(http):
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        if gauge(http, "ekiben_requests_in_progress") == 0 and gauge(http, "ekiben_requests_running") == 0 \
                and gauge(http, "ekiben_requests_waiting") == 0:
            return
        time.sleep(0.01)
    raise AssertionError("something of the clients that left is still there")


def test_all_comes_back(http, url, model):
    parts = urllib.parse.urlsplit(url)
    address = (parts.hostname, parts.port or 80)
    asyncio.run(leave_many(address, model, min(COUNT, 200), seed=1))  # warm: pools, caches, allocator
    settle(http)
    before = rss_kib()
    asyncio.run(leave_many(address, model, COUNT, seed=2))
    settle(http)
    assert gauge(http, "ekiben_kv_cache_usage_ratio") == 0
    after = rss_kib()
    print(f"{COUNT} disconnects, RSS {before} -> {after} KiB")
    assert after <= before * 1.1 + 8192
