"""Structured outputs and tool calls: what was asked for is what comes, whatever the model would rather say."""
import json
import re

import jsonschema
import openai
import pytest

from conftest import whole_model

USER = [{"role": "user", "content": "Describe a cat as JSON."}]
CAT = {"type": "object", "additionalProperties": False, "required": ["name", "age", "color"],
       "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 30},
                      "color": {"enum": ["black", "white"]}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "additionalProperties": False, "required": ["city", "unit"],
    "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}}}}},
    {"type": "function", "function": {"name": "now"}}]
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(autouse=True)
def a_model(model):
    if model == "test-model":
        pytest.skip("the server without a model has no grammars")


def text_of(client, model, **more):
    answer = client.chat.completions.create(model=model, messages=USER, max_tokens=300, **more)
    return answer.choices[0].message.content, answer.choices[0].finish_reason


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("seed", [1, 2])
def test_json_schema(client, model, temperature, seed):
    form = {"type": "json_schema", "json_schema": {"name": "cat", "schema": CAT, "strict": True}}
    text, finish = text_of(client, model, response_format=form, temperature=temperature, seed=seed)
    assert finish == "stop"
    jsonschema.validate(json.loads(text), CAT)


def test_json_object(client, model):
    # A small model may not come to an end by itself: two names at most.
    text, finish = text_of(client, model, response_format={"type": "json_object"}, temperature=0, stop=["\n}"])
    assert text.lstrip().startswith("{")
    if finish == "stop":
        assert isinstance(json.loads(text if text.rstrip().endswith("}") else text + "\n}"), dict)


@pytest.mark.parametrize("more,pattern", [
    ({"structured_outputs": {"regex": "[0-9]{3}-[0-9]{4}"}}, r"\d{3}-\d{4}"),
    ({"guided_regex": "(ab|cd){2}"}, r"(ab|cd){2}"),
    ({"structured_outputs": {"choice": ["yes", "no", "so \"so\"\n"]}}, r'yes|no|so "so"\n'),
    ({"guided_choice": ["ja", "nein"]}, "ja|nein"),
    ({"structured_outputs": {"grammar": 'root ::= "a" [b-z]{3} "!"'}}, r"a[b-z]{3}!"),
    ({"guided_json": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}}, r"\s*\[[\s12,]*\]\s*"),
])
def test_vllm_spellings(client, model, more, pattern):
    for temperature in (0, 1):
        text, finish = text_of(client, model, extra_body=more, temperature=temperature, seed=7)
        assert finish == "stop" and re.fullmatch(pattern, text), text


def test_each_of_n_is_held_to_it(client, model):
    answer = client.chat.completions.create(model=model, messages=USER, n=4, temperature=1, seed=3, max_tokens=50,
                                            extra_body={"guided_regex": "[0-9]{5}"})
    texts = [choice.message.content for choice in answer.choices]
    assert all(re.fullmatch(r"\d{5}", text) for text in texts) and len(set(texts)) > 1


def test_with_logprobs_stop_and_min_tokens(client, model):
    answer = client.chat.completions.create(model=model, messages=USER, temperature=0, max_tokens=50, logprobs=True,
                                            top_logprobs=2, extra_body={"guided_choice": ["yes", "no"], "min_tokens": 20})
    choice = answer.choices[0]
    assert choice.message.content in ("yes", "no"), "where only an end is left, min_tokens gives way"
    assert "".join(t.token for t in choice.logprobs.content) == choice.message.content
    text, _ = text_of(client, model, extra_body={"guided_regex": "[0-9]{4}x[0-9]{4}"}, stop=["x"], temperature=0)
    assert re.fullmatch(r"\d{4}", text)


@pytest.mark.parametrize("more,param", [
    ({"guided_regex": "(a"}, "guided_regex"), ({"guided_regex": "a{1000000}"}, "guided_regex"),
    ({"guided_regex": "((a{99}){99}){99}"}, "guided_regex"), ({"guided_choice": []}, "guided_choice"),
    ({"guided_json": {"type": "nothing"}}, "guided_json"), ({"guided_json": "{"}, "guided_json"),
    ({"guided_json": {"type": "string", "maxLength": 10**9}}, "guided_json"),
    ({"guided_grammar": "root ::= missing"}, "guided_grammar"), ({"guided_json": {"$ref": "#"}}, "guided_json"),
    ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
    ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
])
def test_bad_grammars(client, model, more, param):
    with pytest.raises(openai.BadRequestError) as e:
        text_of(client, model, extra_body=more)
    assert e.value.param == param


@whole_model
def test_required_tool(client, model):
    answer = client.chat.completions.create(model=model, messages=ASK, tools=TOOLS, tool_choice="required",
                                            parallel_tool_calls=False, temperature=0, max_tokens=200)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        jsonschema.validate(arguments, TOOLS[0]["function"]["parameters"])


def test_named_tool(client, model):
    choice = client.chat.completions.create(
        model=model, messages=ASK, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}},
        temperature=1, seed=5, max_tokens=200).choices[0]
    assert choice.finish_reason == "stop", "OpenAI's word for a tool that was named"
    assert choice.message.tool_calls[0].function.name == "weather"
    jsonschema.validate(json.loads(choice.message.tool_calls[0].function.arguments), TOOLS[0]["function"]["parameters"])


@whole_model
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_streamed_arguments(client, model, choice):
    name = arguments = ""
    finish, ids = None, []
    for chunk in client.chat.completions.create(model=model, messages=ASK, tools=TOOLS, tool_choice=choice, stream=True,
                                                parallel_tool_calls=False, temperature=0, max_tokens=200):
        delta = chunk.choices[0].delta
        finish = chunk.choices[0].finish_reason or finish
        for call in delta.tool_calls or []:
            assert call.index == 0
            if call.id:
                ids.append(call.id)
                name += call.function.name
                assert call.function.arguments == ""
            arguments += call.function.arguments
    assert len(ids) == 1 and name in ("weather", "now")
    assert isinstance(json.loads(arguments), dict)
    assert finish == ("tool_calls" if choice == "required" else "stop")


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_free_choice_answers(client, model, choice):
    answer = client.chat.completions.create(model=model, messages=ASK, tools=TOOLS, tool_choice=choice, temperature=0,
                                            max_tokens=20).choices[0]
    assert answer.message.content or answer.message.tool_calls
    if choice == "none":
        assert not answer.message.tool_calls


@pytest.mark.parametrize("more,param", [
    ({"tools": []}, "tools"), ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "perhaps"}, "tool_choice"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
])
def test_bad_tools(client, model, more, param):
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model=model, messages=ASK, **more)
    assert e.value.param == param


def test_conversation_with_a_tool(client, model):
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    answer = client.chat.completions.create(model=model, max_tokens=10, tools=TOOLS, messages=[
        *ASK, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12:00"}])
    assert answer.usage.completion_tokens > 0


@whole_model
def test_response_with_a_schema(client, model):
    answer = client.responses.create(model=model, input="A cat as JSON.", temperature=0, max_output_tokens=200,
                                     text={"format": {"type": "json_schema", "name": "cat", "schema": CAT}})
    jsonschema.validate(json.loads(answer.output_text), CAT)


def test_response_stream_is_the_answer(client, model):
    ask = dict(model=model, input="Count to three.", temperature=0, max_output_tokens=12)
    events = list(client.responses.create(stream=True, **ask))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert text == events[-1].response.output_text == client.responses.create(**ask).output_text


def test_embeddings_alone_and_together(client, model):
    texts = ["The cat sat on the mat.", "A kitten rested on the rug.", "Stock markets fell sharply today. " * 40]
    for pooling in ("last", "mean"):
        together = [d.embedding for d in client.embeddings.create(
            model=model, input=texts, extra_body={"pooling": pooling}).data]
        for text, vector in zip(texts, together):
            assert abs(sum(x * x for x in vector) - 1) < 1e-5
            alone = client.embeddings.create(model=model, input=text, extra_body={"pooling": pooling}).data[0].embedding
            assert alone == vector
        near, far = (sum(a * b for a, b in zip(together[0], together[i])) for i in (1, 2))
        assert near > far
