"""The openai SDK against a running server. Nothing here knows the model: lengths are forced, texts are compared with
each other."""
import json
import math
import threading
import time

import httpx
import openai
import pytest

USER = [{"role": "user", "content": "Name three stations of the line to the north."}]
EXACT = {"ignore_eos": True}  # exactly max_tokens tokens


def chat(client, model, messages=USER, **kwargs):
    extra = kwargs.pop("extra", {})
    kwargs.setdefault("max_tokens", 12)
    kwargs.setdefault("temperature", 0)
    return client.chat.completions.create(model=model, messages=messages, extra_body=extra, **kwargs)


def complete(client, model, prompt="The train leaves", **kwargs):
    extra = kwargs.pop("extra", {})
    kwargs.setdefault("max_tokens", 12)
    kwargs.setdefault("temperature", 0)
    return client.completions.create(model=model, prompt=prompt, extra_body=extra, **kwargs)


def joined(chunks, choice=0):
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == choice)


def joined_text(chunks, choice=0):
    return "".join(c.text for chunk in chunks for c in chunk.choices if c.index == choice)


# ---- models


def test_models(client, model):
    listed = client.models.list()
    assert listed.object == "list" and listed.data[0].object == "model"
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError) as e:
        client.models.retrieve("no-such-model")
    assert e.value.code == "model_not_found" and e.value.param == "model"


# ---- chat


def test_chat_whole(client, model):
    answer = chat(client, model, extra=EXACT)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == model
    assert abs(answer.created - time.time()) < 60
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.finish_reason == "length" and choice.index == 0 and choice.logprobs is None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer._request_id


def test_chat_stream_equals_whole(client, model):
    whole = chat(client, model, extra=EXACT, max_tokens=24)
    chunks = list(chat(client, model, extra=EXACT, max_tokens=24, stream=True))
    assert joined(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    assert all(c.usage is None for c in chunks)


def test_usage_on_request(client, model):
    whole = chat(client, model, extra=EXACT)
    chunks = list(chat(client, model, extra=EXACT, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    counts = lambda u: (u.prompt_tokens, u.completion_tokens, u.total_tokens)
    assert counts(chunks[-1].usage) == counts(whole.usage)
    assert all(c.usage is None for c in chunks[:-1])
    for options in ({}, {"include_usage": False}):
        silent = list(chat(client, model, stream=True, stream_options=options))
        assert all(c.usage is None and len(c.choices) == 1 for c in silent)


def test_continuous_usage(client, model):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(chat(client, model, extra=EXACT, max_tokens=16, stream=True, stream_options=options))
    counts = [c.usage.completion_tokens for c in chunks]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 16
    assert set(range(1, 17)) <= set(counts)  # a chunk for each token


def test_raw_stream_framing(http, model):
    body = {"model": model, "messages": USER, "max_tokens": 6, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "x-request-id" in response.headers
        lines = "".join(response.iter_text()).split("\n\n")
    assert lines[-1] == "" and lines[-2] == "data: [DONE]"
    for line in lines[:-2]:
        assert line.startswith("data: {") and "\n" not in line
        assert "usage" not in json.loads(line[6:])


def test_content_parts(client, model):
    parts = [{"role": "user", "content": [{"type": "text", "text": "Good morning."}]}]
    plain = [{"role": "user", "content": "Good morning."}]
    assert chat(client, model, parts).choices[0].message.content == chat(client, model, plain).choices[0].message.content


def test_max_completion_tokens(client, model):
    answer = client.chat.completions.create(
        model=model, messages=USER, max_completion_tokens=5, extra_body={**EXACT, "max_tokens": 9}
    )
    assert answer.usage.completion_tokens == 5


def test_n_choices(client, model):
    answer = chat(client, model, n=3, temperature=1, seed=5, extra=EXACT)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == 36
    assert len({c.message.content for c in answer.choices}) > 1
    chunks = list(chat(client, model, n=3, temperature=1, seed=5, extra=EXACT, stream=True))
    for i in range(3):
        assert joined(chunks, i) == answer.choices[i].message.content
    reasons = [(c.index, c.finish_reason) for k in chunks for c in k.choices if c.finish_reason]
    assert sorted(reasons) == [(0, "length"), (1, "length"), (2, "length")]


def test_seed(client, model):
    draw = lambda seed: chat(client, model, temperature=1, seed=seed, extra=EXACT, max_tokens=24).choices[0].message.content
    assert draw(1) == draw(1)
    assert len({draw(s) for s in (1, 2, 3)}) > 1
    unseeded = {chat(client, model, temperature=1, extra=EXACT, max_tokens=24).choices[0].message.content for _ in range(4)}
    assert len(unseeded) > 1


def test_stop_strings(client, model):
    text = chat(client, model, extra=EXACT, max_tokens=24).choices[0].message.content
    middle = len(text) // 2
    stop = text[middle : middle + 2]
    expected = text[: text.index(stop)]
    answer = chat(client, model, extra=EXACT, max_tokens=24, stop=stop)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].model_extra["stop_reason"] == stop
    chunks = list(chat(client, model, extra=EXACT, max_tokens=24, stop=["\x00never", stop], stream=True))
    assert joined(chunks) == expected and chunks[-1].choices[0].finish_reason == "stop"
    kept = chat(client, model, max_tokens=24, stop=[stop], extra={**EXACT, "include_stop_str_in_output": True})
    assert kept.choices[0].message.content == expected + stop


def test_chat_logprobs(client, model):
    answer = chat(client, model, logprobs=True, top_logprobs=3, extra=EXACT)
    content = answer.choices[0].logprobs.content
    assert len(content) == 12
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        values = [t.logprob for t in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert token.token == token.top_logprobs[0].token  # greedy: the best was taken
    text = b"".join(bytes(t.bytes) for t in content).decode("utf-8", "replace")
    assert text == answer.choices[0].message.content
    streamed = [t for k in chat(client, model, logprobs=True, top_logprobs=3, extra=EXACT, stream=True)
                for c in k.choices if c.logprobs for t in c.logprobs.content]
    assert [t.token for t in streamed] == [t.token for t in content]
    none = chat(client, model, logprobs=True, extra=EXACT).choices[0].logprobs.content
    assert all(t.top_logprobs == [] for t in none)


def test_return_token_ids(client, model, http):
    answer = chat(client, model, extra={**EXACT, "return_token_ids": True})
    ids = answer.choices[0].model_extra["token_ids"]
    assert len(ids) == 12
    assert http.post("/detokenize", json={"tokens": ids}).json()["prompt"].startswith(
        answer.choices[0].message.content[:4])


# ---- completions


def test_completion_whole_and_stream(client, model):
    whole = complete(client, model, extra=EXACT, max_tokens=20)
    assert whole.object == "text_completion" and whole.id.startswith("cmpl-")
    assert whole.usage.completion_tokens == 20 and whole.choices[0].finish_reason == "length"
    chunks = list(complete(client, model, extra=EXACT, max_tokens=20, stream=True, stream_options={"include_usage": True}))
    assert joined_text(chunks) == whole.choices[0].text
    assert chunks[-1].usage.completion_tokens == 20 and chunks[-1].choices == []


def test_completion_default_length(client, model):
    answer = client.completions.create(model=model, prompt="One", extra_body=EXACT)
    assert answer.usage.completion_tokens == 16


def test_prompt_forms(client, model, http):
    tokens = lambda text: http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    a, b = "The first stop", "A second one"
    both = complete(client, model, [a, b], extra=EXACT)
    assert [c.index for c in both.choices] == [0, 1]
    assert both.choices[0].text == complete(client, model, a, extra=EXACT).choices[0].text
    ids = complete(client, model, [tokens(a), tokens(b)], extra=EXACT)
    assert [c.text for c in ids.choices] == [c.text for c in both.choices]
    assert complete(client, model, tokens(a), extra=EXACT).choices[0].text == both.choices[0].text
    two = complete(client, model, [a, b], n=2, temperature=1, seed=3, extra=EXACT)
    assert [c.index for c in two.choices] == [0, 1, 2, 3]


def test_echo_and_scores(client, model, http):
    prompt = "Steam rises over the platform"
    answer = complete(client, model, prompt, echo=True, extra=EXACT)
    assert answer.choices[0].text.startswith(prompt)
    tokens = http.post("/tokenize", json={"prompt": prompt}).json()["tokens"]
    scored = complete(client, model, [tokens], echo=True, logprobs=1, max_tokens=1)
    logprobs = scored.choices[0].logprobs
    assert len(logprobs.tokens) == len(tokens) + 1 == len(logprobs.token_logprobs) == len(logprobs.top_logprobs)
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert all(v <= 0 for v in logprobs.token_logprobs[1:])
    for token, value, top in list(zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs))[1:]:
        assert math.isclose(top[token], value, abs_tol=1e-5)
    assert logprobs.text_offset[0] == 0 and logprobs.text_offset == sorted(logprobs.text_offset)
    only = complete(client, model, prompt, echo=True, logprobs=0, max_tokens=0)
    assert only.choices[0].text == prompt and only.usage.completion_tokens == 0


def test_extras(client, model):
    extras = dict(top_k=20, min_p=0.01, repetition_penalty=1.1, min_tokens=4, skip_special_tokens=False, priority=2,
                  cache_salt="tenant", stop_token_ids=[], bad_words=[], some_unknown_field={"a": 1})
    assert complete(client, model, temperature=0.7, seed=1, extra=extras).usage.completion_tokens >= 4


def test_slots_are_shared(client, model):
    texts = {}

    def run(i):
        texts[i] = complete(client, model, f"Passenger {i} says", extra=EXACT, max_tokens=20).choices[0].text

    threads = [threading.Thread(target=run, args=(i,)) for i in range(20)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for i in (0, 7, 19):
        assert texts[i] == complete(client, model, f"Passenger {i} says", extra=EXACT, max_tokens=20).choices[0].text


# ---- errors

BAD = [
    (dict(temperature=3), "temperature", "2"),
    (dict(n=1000), "n", "128"),
    (dict(top_p=1.5), "top_p", "1"),
    (dict(max_tokens=0), "max_tokens", "0"),
    (dict(top_logprobs=3), "top_logprobs", "logprobs"),
    (dict(logprobs=True, top_logprobs=50), "top_logprobs", "20"),
    (dict(presence_penalty=9), "presence_penalty", "2"),
    (dict(logit_bias={"1": 500}), "logit_bias", "100"),
    (dict(logit_bias={"99999999": 1}), "logit_bias", "99999999"),
    (dict(stop=["x"] * 17), "stop", "16"),
    (dict(stream_options={"include_usage": True}), "stream_options", "stream"),
    (dict(messages=[]), "messages", "empty"),
    (dict(messages=[{"role": "robot", "content": "x"}]), "messages[0].role", "robot"),
    (dict(response_format={"type": "yaml"}), "response_format", "yaml"),
    (dict(tool_choice="auto"), "tool_choice", "tools"),
]


@pytest.mark.parametrize("change,param,word", BAD, ids=[f"{b[1]}-{i}" for i, b in enumerate(BAD)])
def test_bad_request(client, model, change, param, word):
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(**{"model": model, "messages": USER, **change})
    assert e.value.param == param and word in e.value.message
    assert set(e.value.body) == {"message", "type", "param", "code"}


def test_too_long_prompt(client, model):
    limit = client.models.retrieve(model).model_extra["max_model_len"]
    with pytest.raises(openai.BadRequestError) as e:
        complete(client, model, [5] * (limit + 1))
    assert e.value.param == "prompt" and str(limit + 1) in e.value.message
    with pytest.raises(openai.BadRequestError) as e:
        complete(client, model, "x", max_tokens=limit + 1)
    assert e.value.param == "max_tokens"


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as e:
        chat(client, "no-such-model")
    assert e.value.code == "model_not_found"


@pytest.mark.parametrize("content,headers,status", [
    (b"{bad", {}, 400), (b"[]", {}, 400), (b"", {}, 400), (b"\xff\xfe", {}, 400), (b"[" * 5000, {}, 400),
    (b"{}", {"content-type": "text/plain"}, 415), (b" " * (17 << 20), {}, 413),
])
def test_bad_bodies(http, content, headers, status):
    headers = {"content-type": "application/json", **headers}
    response = http.post("/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_routes_and_methods(http):
    missing = http.get("/v1/no/such/route")
    assert missing.status_code == 404 and "error" in missing.json()
    wrong = http.get("/v1/chat/completions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST" and "error" in wrong.json()


def test_disconnect_frees_the_slot(http, url, model):
    def running():
        for line in http.get("/metrics").text.splitlines():
            if line.startswith("ekiben_requests_running{"):
                return float(line.split()[-1])

    def wait(condition):
        end = time.time() + 5
        while not condition():
            assert time.time() < end
            time.sleep(0.01)

    body = {"model": model, "prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with httpx.Client(base_url=url, timeout=60) as leaving:
        with leaving.stream("POST", "/v1/completions", json=body) as response:
            chunks = response.iter_raw()  # held: an iterator that is dropped closes the connection
            next(chunks)
            wait(lambda: running() >= 1)  # the step that gave the first token says so at its end
    wait(lambda: running() == 0)


# ---- utility routes


def test_tokenize_round_trip(http):
    text = "Ekiben 駅弁 🍱 costs 1,200 yen."
    tokens = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    assert tokens["count"] == len(tokens["tokens"]) > 0 and tokens["max_model_len"] > 0
    assert http.post("/detokenize", json={"tokens": tokens["tokens"]}).json()["prompt"] == text
    chat_tokens = http.post("/tokenize", json={"messages": [{"role": "user", "content": text}]}).json()
    assert chat_tokens["count"] > tokens["count"]
    bad = http.post("/detokenize", json={"tokens": [-1]})
    assert bad.status_code == 400 and bad.json()["error"]["param"] == "tokens"


def test_health_version_metrics(http):
    assert http.get("/health").status_code == 200 and http.get("/ping").status_code == 200
    assert "version" in http.get("/version").json()
    metrics = http.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    types = [line for line in metrics.text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) > 20
