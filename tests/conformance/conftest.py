import os

import httpx
import openai
import pytest

URL = os.environ.get("EKIBEN_URL", "http://127.0.0.1:3000").rstrip("/")


@pytest.fixture(scope="session")
def url():
    return URL


@pytest.fixture(scope="session")
def http():
    with httpx.Client(base_url=URL, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def client():
    key = os.environ.get("EKIBEN_API_KEY", "EMPTY")
    return openai.OpenAI(base_url=URL + "/v1", api_key=key, max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id
