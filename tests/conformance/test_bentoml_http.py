"""POST /generate and the health routes as BentoML's own client and llm-bench see them on the wire."""
import json
import threading
import time

import httpx
import pytest

MAX = {"max_tokens": 128}


def stream(http, **kwargs):
    with http.stream("POST", "/generate", **kwargs) as response:
        chunks = list(response.iter_raw())
        return response, chunks


@pytest.mark.parametrize("path", ["/readyz", "/healthz", "/livez"])
def test_health(http, path):
    response = http.get(path)
    assert response.status_code == 200 and response.content == b"\n"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert http.head(path).status_code == 200
    wrong = http.post(path)
    assert wrong.status_code == 405 and wrong.headers["allow"] == "GET, HEAD"


def test_generate_is_post_only(http):
    response = http.get("/generate")
    assert response.status_code == 405 and response.headers["allow"] == "POST"
    assert response.text == "Method Not Allowed" and response.headers["content-type"].startswith("text/plain")
    missing = http.get("/no-such-route")
    assert missing.status_code == 404 and missing.text == "Not Found"


@pytest.mark.parametrize("kwargs", [
    dict(json={"prompt": "Hi", **MAX}),
    dict(json={"prompt": "Hi", **MAX, "nobody": {"knows": "this"}}),
    dict(json={"prompt": "Hi", "max_tokens": "128"}),
    dict(json={"prompt": "Hi", "max_tokens": 128.0}),
    dict(json={"prompt": "Hi", "system_prompt": None, **MAX}),
    dict(json={"prompt": "Hi", "system_prompt": "", **MAX}),
    dict(content=json.dumps({"prompt": "Hi", **MAX}), headers={"content-type": "text/plain"}),
    dict(data={"prompt": "Hi", "max_tokens": "128"}),
], ids=["plain", "extra", "string", "float", "null-system", "empty-system", "text-plain", "form"])
def test_generate_streams_raw_text(http, kwargs):
    response, chunks = stream(http, **kwargs)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["transfer-encoding"] == "chunked"
    assert response.headers["server"].startswith("BentoML Service/")
    assert len(response.headers["x-bentoml-request-id"]) == 16
    body = b"".join(chunks)
    assert b"data:" not in body and b"[DONE]" not in body


def test_defaults_need_no_body(http):
    for kwargs in (dict(json={}), dict(content=b"")):
        with http.stream("POST", "/generate", **kwargs) as response:
            assert response.status_code == 200
            next(response.iter_raw(), b"")


CASES = [
    ({"max_tokens": 127}, "greater_than_equal"), ({"max_tokens": 1025}, "less_than_equal"),
    ({"max_tokens": 300.5}, "int_from_float"), ({"max_tokens": None}, "int_type"), ({"max_tokens": [1]}, "int_type"),
    ({"max_tokens": "abc"}, "int_parsing"), ({"prompt": None}, "string_type"), ({"prompt": 5}, "string_type"),
]


@pytest.mark.parametrize("body,kind", CASES, ids=[f"{json.dumps(b)}" for b, _ in CASES])
def test_validation(http, body, kind):
    response = http.post("/generate", json=body)
    assert response.status_code == 400
    answer = response.json()
    assert answer["error"] == "1 validation error for Input"
    (detail,) = answer["detail"]
    assert detail["type"] == kind and detail["loc"] == [next(iter(body))]
    assert detail["url"] == f"https://errors.pydantic.dev/2.13/v/{kind}" and detail["msg"].startswith("Input should be")


def test_two_problems_and_no_object(http):
    two = http.post("/generate", json={"prompt": None, "max_tokens": 1}).json()
    assert two["error"] == "2 validation error for Input" and len(two["detail"]) == 2
    array = http.post("/generate", content=b"[1]").json()
    assert array["detail"][0]["type"] == "model_type" and array["detail"][0]["loc"] == []
    bad = http.post("/generate", content=b"{bad").json()
    assert bad["detail"][0]["type"] == "json_invalid" and bad["detail"][0]["loc"] == []
    pickle = http.post("/generate", content=b"x", headers={"content-type": "application/vnd.bentoml+pickle"})
    assert pickle.status_code == 415 and "error" in pickle.json()[0]


def test_every_chunk_is_whole_characters(http):
    prompt = "Repeat: 駅弁 🍱 は 美味しい です。 日本語で答えてください。絵文字も: 🚄🗻🌸"
    _, chunks = stream(http, json={"prompt": prompt, "max_tokens": 256})
    texts = [chunk.decode("utf-8") for chunk in chunks]  # raises inside a character
    _, again = stream(http, json={"prompt": prompt, "max_tokens": 256})
    assert "".join(texts) == b"".join(again).decode("utf-8")  # greedy


def gauge(http, name):
    for line in http.get("/metrics").text.splitlines():
        if line.startswith(name + "{"):
            return float(line.split()[-1])
    raise AssertionError(name)


def test_leaving_mid_stream(http, url):
    before = gauge(http, "ekiben_requests_total")
    with httpx.Client(base_url=url, timeout=60) as leaving:
        with leaving.stream("POST", "/generate", json={"prompt": "Tell a long story."}) as response:
            next(response.iter_raw())
    end = time.time() + 5
    held = lambda: gauge(http, "ekiben_requests_in_progress") + gauge(http, "ekiben_requests_running")
    while held() > 0 and time.time() < end:  # the call is over at once, its slot with the next step
        time.sleep(0.01)
    assert held() == 0
    assert gauge(http, "ekiben_requests_total") == before + 1


def test_schema_names_the_api(http):
    schema = http.get("/schema.json").json()
    (route,) = [r for r in schema["routes"] if r["name"] == "generate"]
    assert route["route"] == "/generate" and route["output"]["is_stream"] is True
    assert set(route["input"]["properties"]) == {"prompt", "system_prompt", "max_tokens"}


def test_many_streams_at_once(http, url):
    results = []

    def run():
        with httpx.Client(base_url=url, timeout=120) as one:
            _, chunks = stream(one, json={"prompt": "Short answer, please.", **MAX})
            results.append(b"".join(chunks).decode("utf-8"))

    threads = [threading.Thread(target=run) for _ in range(16)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(results) == 16 and len(set(results)) == 1
