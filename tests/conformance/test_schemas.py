"""Every answer and every stream chunk of the OpenAI routes against the schema of its object (schemas/*.json).

The schemas forbid unknown properties: a field that is added here must be added there, where its source can be asked.
"""
import json
import pathlib

import jsonschema
import pytest

FOLDER = pathlib.Path(__file__).resolve().parent / "schemas"
SCHEMAS = {path.stem: jsonschema.Draft202012Validator(json.loads(path.read_text())) for path in FOLDER.glob("*.json")}
USER = [{"role": "user", "content": "Count to three."}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}}}]
FLAT_TOOLS = [{"type": "function", **TOOLS[0]["function"]}]


def check(name, value):
    SCHEMAS[name].validate(value)
    return value


def events(text):
    """The data objects of a stream, and whether [DONE] closed it."""
    data = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    done = data[-1] == "[DONE]"
    return [json.loads(item) for item in (data[:-1] if done else data)], done


def test_schemas_are_schemas():
    assert len(SCHEMAS) >= 12
    for validator in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(validator.schema)


@pytest.mark.parametrize("field", ["id", "object", "created", "model", "choices"])
def test_schemas_catch_a_missing_field(http, field):
    answer = http.post("/v1/chat/completions", json={"messages": USER, "max_tokens": 2}).json()
    check("chat_completion", answer)
    del answer[field]
    with pytest.raises(jsonschema.ValidationError):
        check("chat_completion", answer)


CHATS = [
    {}, {"n": 2}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 3}, {"stop": ["e"]}, {"prompt_logprobs": 2},
    {"return_token_ids": True}, {"stop_token_ids": [1]}, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "none"},
    {"metadata": {"a": "b"}, "store": False, "service_tier": "auto", "user": "me"}, {"best_of": 3, "n": 2},
]


@pytest.mark.parametrize("more", CHATS, ids=lambda more: ",".join(more) or "plain")
def test_chat(http, more):
    answer = http.post("/v1/chat/completions", json={"messages": USER, "max_tokens": 8, **more})
    assert answer.status_code == 200, answer.text
    check("chat_completion", answer.json())
    if "prompt_logprobs" in more or "best_of" in more:
        return
    stream = http.post("/v1/chat/completions", json={"messages": USER, "max_tokens": 8, "stream": True, **more})
    chunks, done = events(stream.text)
    assert done and chunks
    for chunk in chunks:
        check("chat_completion_chunk", chunk)
        assert chunk["choices"], "no chunk without a choice unless usage was asked for"


@pytest.mark.parametrize("options", [{"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}, {}])
@pytest.mark.parametrize("path,body,name", [
    ("/v1/chat/completions", {"messages": USER}, "chat_completion_chunk"),
    ("/v1/completions", {"prompt": "Count"}, "completion_chunk")])
def test_stream_options(http, path, body, name, options):
    answer = http.post(path, json={**body, "max_tokens": 4, "stream": True, "stream_options": options})
    chunks, done = events(answer.text)
    assert done
    for chunk in chunks:
        check(name, chunk)
    empty = [chunk for chunk in chunks if not chunk["choices"]]
    assert len(empty) == (1 if options else 0)
    assert all(chunk["usage"]["completion_tokens"] == 4 for chunk in empty)


COMPLETIONS = [
    {}, {"n": 2}, {"logprobs": 0}, {"logprobs": 3}, {"echo": True}, {"echo": True, "logprobs": 1},
    {"echo": True, "logprobs": 1, "max_tokens": 0}, {"prompt": ["a", "b c"], "n": 2}, {"prompt": [5, 6, 7]},
    {"prompt": [[5, 6], [7]], "echo": True, "logprobs": 1, "max_tokens": 1}, {"best_of": 3}, {"prompt_logprobs": 1},
    {"return_token_ids": True},
]


@pytest.mark.parametrize("more", COMPLETIONS, ids=lambda more: ",".join(more) or "plain")
def test_completion(http, more):
    body = {"prompt": "Count to three: one, two,", "max_tokens": 6, **more}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    whole = check("completion", answer.json())
    prompts = len(body["prompt"]) if isinstance(body["prompt"][0], (list, str)) and isinstance(body["prompt"], list) else 1
    assert [choice["index"] for choice in whole["choices"]] == list(range(prompts * body.get("n", 1)))
    if "prompt_logprobs" in more or "best_of" in more:
        return
    chunks, done = events(http.post("/v1/completions", json={**body, "stream": True}).text)
    assert done and chunks
    for chunk in chunks:
        check("completion_chunk", chunk)


@pytest.mark.parametrize("body", [{"input": "a"}, {"input": ["a", "b c"], "encoding_format": "base64"},
                                  {"input": [5, 6]}, {"input": [[5], [6, 7]], "dimensions": 4},
                                  {"input": "a b", "pooling": "mean"}])
def test_embeddings(http, body):
    answer = http.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    check("embedding_list", answer.json())


RESPONSES = [{}, {"instructions": "Be brief."}, {"metadata": {"a": "b"}, "temperature": 0.5}, {"tools": FLAT_TOOLS},
             {"max_output_tokens": 2}]


@pytest.mark.parametrize("more", RESPONSES, ids=lambda more: ",".join(more) or "plain")
def test_responses(http, more):
    body = {"input": "Count to three.", "max_output_tokens": 8, **more}
    answer = http.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    check("response", answer.json())
    text = http.post("/v1/responses", json={**body, "stream": True}).text
    chunks, done = events(text)
    assert not done, "this stream ends with its last event"
    assert [chunk["sequence_number"] for chunk in chunks] == list(range(len(chunks)))
    for chunk in chunks:
        check("response_event", chunk)
    names = [line[7:] for line in text.split("\n") if line.startswith("event: ")]
    assert names == [chunk["type"] for chunk in chunks]
    assert names[0] == "response.created" and names[-1] in ("response.completed", "response.incomplete")


def test_models_and_tokens(http, model):
    check("model_list", http.get("/v1/models").json())
    check("model", http.get(f"/v1/models/{model}").json())
    for more in ({}, {"return_token_strs": True}):
        tokens = check("tokenize", http.post("/tokenize", json={"prompt": "one two", **more}).json())
    check("detokenize", http.post("/detokenize", json={"tokens": tokens["tokens"]}).json())


@pytest.mark.parametrize("path,body,status", [
    ("/v1/chat/completions", {"messages": []}, 400), ("/v1/chat/completions", {"messages": USER, "n": 0}, 400),
    ("/v1/completions", {}, 400), ("/v1/completions", {"prompt": "a", "model": "no-such-model"}, 404),
    ("/v1/embeddings", {"input": []}, 400), ("/v1/responses", {"input": "a", "previous_response_id": "r"}, 400),
    ("/tokenize", {}, 400), ("/detokenize", {"tokens": ["a"]}, 400), ("/v1/nothing", {}, 404),
])
def test_errors(http, path, body, status):
    answer = http.post(path, json=body)
    assert answer.status_code == status
    check("error", answer.json())
