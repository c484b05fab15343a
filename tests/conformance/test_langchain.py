"""langchain-openai's chat model, completion model and embeddings against a running server."""
import asyncio
import json

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from conftest import whole_model


@pytest.fixture(scope="module")
def chat(url, model):
    return ChatOpenAI(base_url=url + "/v1", api_key="EMPTY", model=model, temperature=0, max_tokens=16, max_retries=0,
                      timeout=120)


def test_invoke(chat):
    answer = chat.invoke("Name a station.")
    assert isinstance(answer, AIMessage) and answer.content
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    assert answer.usage_metadata["output_tokens"] <= 16
    assert answer.usage_metadata["total_tokens"] == \
        answer.usage_metadata["input_tokens"] + answer.usage_metadata["output_tokens"]


def test_stream_equals_invoke(chat):
    messages = [SystemMessage("You answer briefly."), HumanMessage("Where does the line end?")]
    chunks = list(chat.stream(messages, stream_usage=True))
    whole = chat.invoke(messages)
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert [c.usage_metadata for c in chunks if c.usage_metadata][-1]["output_tokens"] == \
        whole.usage_metadata["output_tokens"]


def test_async_and_batch(chat):
    questions = [f"What leaves from track {i}?" for i in range(4)]

    async def work():
        streamed = "".join([chunk.content async for chunk in chat.astream(questions[0])])
        return streamed, [m.content for m in await chat.abatch(questions)]

    streamed, gathered = asyncio.run(work())
    assert gathered == [m.content for m in chat.batch(questions)] and streamed == gathered[0]


def test_conversation_of_all_roles(chat):
    messages = [SystemMessage("Brief."), HumanMessage("Hi"), AIMessage("Hello."),
                HumanMessage([{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]),
                AIMessage("", tool_calls=[{"name": "clock", "args": {}, "id": "call_1"}]),
                ToolMessage("12:00", tool_call_id="call_1")]
    assert chat.invoke(messages).response_metadata["model_name"] == chat.model_name


def test_logprobs_stop_and_n(chat):
    answer = chat.bind(logprobs=True, top_logprobs=2).invoke("One, two,")
    assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2
    text = answer.content
    stop = text[len(text) // 2]
    assert chat.bind(stop=[stop]).invoke("One, two,").content == text[:text.index(stop)]
    several = chat.model_copy(update={"n": 2, "temperature": 1.0}).generate([[HumanMessage("Draw.")]])
    assert len(several.generations[0]) == 2


def test_completion_model(url, model):
    llm = OpenAI(base_url=url + "/v1", api_key="EMPTY", model=model, temperature=0, max_tokens=12, max_retries=0)
    whole = llm.invoke("The train leaves")
    assert whole and "".join(llm.stream("The train leaves")) == whole
    assert len(llm.batch(["a", "b"])) == 2


def test_errors_are_the_sdk_errors(url, chat):
    with pytest.raises(openai.NotFoundError):
        chat.model_copy(update={"model_name": "no-such-model"}).invoke("x")
    with pytest.raises(openai.BadRequestError):
        chat.bind(temperature=5).invoke("x")


class Ticket(BaseModel):
    station: str
    platform: int


@whole_model
def test_structured_output(chat):
    longer = chat.model_copy(update={"max_tokens": 200})
    for method in ("json_schema", "function_calling"):
        ticket = longer.with_structured_output(Ticket, method=method).invoke("A ticket to Sendai, platform 4, as JSON.")
        assert isinstance(ticket, Ticket), method


@tool
def timetable(station: str) -> str:
    """Departures of a station."""
    return station


def test_tools(chat):
    longer = chat.model_copy(update={"max_tokens": 200})
    answer = longer.bind_tools([timetable], tool_choice="timetable").invoke("When do trains leave Sendai?")
    (call,) = answer.tool_calls
    assert call["name"] == "timetable" and isinstance(call["args"]["station"], str) and call["id"]
    pieces = None
    for chunk in longer.bind_tools([timetable], tool_choice="timetable").stream("When do trains leave Sendai?"):
        pieces = chunk if pieces is None else pieces + chunk
    assert pieces.tool_calls[0]["args"] == call["args"]
    json.dumps(pieces.tool_calls[0]["args"])


def test_embeddings(url, model):
    embeddings = OpenAIEmbeddings(base_url=url + "/v1", api_key="EMPTY", model=model, check_embedding_ctx_length=False)
    first, second = embeddings.embed_documents(["A train.", "A quiet lake."])
    assert len(first) == len(second) > 0 and first != second
    assert embeddings.embed_query("A train.") == pytest.approx(first, abs=1e-4)
