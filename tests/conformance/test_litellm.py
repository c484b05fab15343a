"""litellm's providers that speak to servers like this one: openai/, hosted_vllm/, text-completion-openai/, triton/. Runs
in an environment of its own: litellm pins an older openai."""
import asyncio
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no look at the network

import litellm  # noqa: E402
import pytest  # noqa: E402

USER = [{"role": "user", "content": "Name a station."}]
PROMPT = "The next train to the coast"


@pytest.fixture(scope="module", params=["openai", "hosted_vllm"])
def base(request, url, model):
    return dict(model=f"{request.param}/{model}", api_base=url + "/v1", api_key="EMPTY", temperature=0, max_tokens=12,
                num_retries=0)


def chunk_text(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_completion(base):
    answer = litellm.completion(messages=USER, **base)
    assert answer.choices[0].message.content and answer.usage.completion_tokens <= 12
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_stream(base):
    whole = litellm.completion(messages=USER, **base).choices[0].message.content
    chunks = list(litellm.completion(messages=USER, stream=True, stream_options={"include_usage": True}, **base))
    assert chunk_text(chunks) == whole
    assert litellm.stream_chunk_builder(chunks).usage.completion_tokens <= 12


def test_async(base):
    async def work():
        whole = await litellm.acompletion(messages=USER, **base)
        text = ""
        async for chunk in await litellm.acompletion(messages=USER, stream=True, **base):
            text += chunk.choices[0].delta.content or ""
        return whole.choices[0].message.content, text

    whole, streamed = asyncio.run(work())
    assert whole == streamed


def test_errors(base):
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=USER, **{**base, "temperature": 9})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=USER, **{**base, "model": "openai/no-such-model"})


def test_text_completion(url, model):
    answer = litellm.text_completion(model=f"text-completion-openai/{model}", prompt=PROMPT, api_base=url + "/v1",
                                     api_key="EMPTY", temperature=0, max_tokens=8)
    assert answer.choices[0].text == plain(url, model)


def plain(url, model):
    import openai

    client = openai.OpenAI(base_url=url + "/v1", api_key="EMPTY")
    return client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0).choices[0].text


def triton(url, route, **kwargs):
    return litellm.completion(model="triton/ensemble", api_base=f"{url}/v2/models/ensemble/{route}",
                              messages=[{"role": "user", "content": PROMPT}], max_tokens=8, **kwargs)


def test_triton_generate(url, model):
    assert triton(url, "generate").choices[0].message.content.endswith(plain(url, model))


def test_triton_generate_stream(url, model):
    assert chunk_text(triton(url, "generate", stream=True)).endswith(plain(url, model))


def test_triton_infer(url):
    assert triton(url, "infer").choices[0].message.content


def test_embedding(url, model):
    answer = litellm.embedding(model=f"openai/{model}", input=["A train.", "A lake."], api_base=url + "/v1",
                               api_key="EMPTY", encoding_format="float")
    assert len(answer.data) == 2 and len(answer.data[0]["embedding"]) == len(answer.data[1]["embedding"]) > 0
