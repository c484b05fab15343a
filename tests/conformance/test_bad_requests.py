"""Every request of bad_requests.py gets its status and words, the server lives on, and a stream beside them does not notice."""
import collections
import http.client
import json
import socket
import threading
import urllib.parse

import pytest
from bad_requests import CASES, KSERVE_CASES
from conftest import SCALE

STREAM = {"prompt": "Once upon a time there was", "max_tokens": 64, "temperature": 0, "ignore_eos": True, "stream": True}


class Good(threading.Thread):
    """The same greedy stream again and again; what differs from the first is kept."""

    def __init__(self, address, headers):
        super().__init__(daemon=True)
        self.address, self.headers = address, headers
        self.alone, self.rounds, self.wrong, self.stopping = self.text(), 0, [], threading.Event()

    def text(self):
        connection = http.client.HTTPConnection(*self.address, timeout=60 * SCALE)
        connection.request("POST", "/v1/completions", json.dumps(STREAM), {**self.headers, "Content-Type": "application/json"})
        lines = [line[6:] for line in connection.getresponse().read().decode().split("\n") if line.startswith("data: ")]
        assert lines[-1] == "[DONE]", lines[-1:]
        return "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1])

    def run(self):
        while not self.stopping.is_set():
            try:
                text = self.text()
            except Exception as error:  # noqa: BLE001 - the test reports whatever it was
                text = repr(error)
            self.rounds += 1
            if text != self.alone:
                self.wrong.append(text)


def wire_bytes(request, headers):
    if isinstance(request, bytes):
        return request
    method, path, own, body = request
    fields = {"Host": "localhost", "Content-Length": str(len(body)), **headers, **own}
    return f"{method} {path} HTTP/1.1\r\n".encode() + "".join(f"{k}: {v}\r\n" for k, v in fields.items()).encode() + b"\r\n" + body


def ask(address, request, headers):
    """(status, body) of the first answer; status 0 when there was none."""
    with socket.create_connection(address, timeout=30 * SCALE) as connection:
        try:
            connection.sendall(wire_bytes(request, headers))
        except OSError:
            pass  # refused before all of it was sent; the answer is there
        answer = http.client.HTTPResponse(connection, method="GET")
        try:
            answer.begin()
            return answer.status, answer.read().decode()
        except (http.client.HTTPException, OSError) as error:
            return 0, repr(error)


@pytest.fixture(scope="module")
def server(start_server):
    with start_server() as server:
        yield server


def wrong_answers(server, cases):
    parts = urllib.parse.urlsplit(server.url)
    address = (parts.hostname, parts.port)
    wrong = []
    for name, surface, request, status, words in cases:
        got, body = ask(address, request, {})
        wanted = status if isinstance(status, set) else {status}
        if got not in wanted or words not in body:
            wrong.append(f"{surface}: {name}: {got} {body[:300]!r}, not {wanted} with {words!r}")
        elif body.startswith("{") and "error" not in json.loads(body):
            wrong.append(f"{surface}: {name}: no error in {body[:300]!r}")
    return wrong


def undisturbed(server, cases, seconds_for_a_round=60):
    parts = urllib.parse.urlsplit(server.url)
    good = Good((parts.hostname, parts.port), {})
    good.start()
    wrong = wrong_answers(server, cases)
    while good.rounds < 2 and seconds_for_a_round > 0:  # the requests may all be answered within one
        good.join(1)
        seconds_for_a_round -= 1
    good.stopping.set()
    good.join(60 * SCALE)
    print(f"{len(cases)} bad requests, {len(wrong)} wrong answers, {good.rounds} good streams of {len(good.alone)} characters beside them; "
          + ", ".join(f"{count} {surface}" for surface, count in collections.Counter(case[1] for case in cases).items()))
    assert not wrong, "\n".join(wrong)
    assert good.rounds >= 2 and not good.wrong, good.wrong[:2]


def test_the_table_is_as_large_as_promised():
    assert len(CASES) >= 200
    names = collections.Counter((case[1], case[0]) for case in CASES)
    assert not [name for name, count in names.items() if count > 1]


def test_bad_requests_beside_a_good_stream(server):
    undisturbed(server, CASES)


def test_bad_kserve_requests_beside_a_good_stream(server):
    address = ("127.0.0.1", server.port)
    if ask(address, ("GET", "/v2/health/live", {}, b""), {})[0] == 404:
        pytest.skip("this server has no KServe routes")
    undisturbed(server, KSERVE_CASES)


def test_nothing_of_a_request_is_logged(server):
    """After the tables: their bodies, keys and names are in no line of the log."""
    address = ("127.0.0.1", server.port)
    secret = "a-secret-that-nobody-logs"
    for path, body in (("/v1/completions", {"prompt": secret, "max_tokens": 1}), ("/v1/completions", {"prompt": secret, "n": secret}),
                       ("/generate", {"prompt": secret, "max_tokens": 1}), ("/v1/chat/completions", {"messages": [{"role": secret}]})):
        ask(address, ("POST", path, {"Content-Type": "application/json", "Authorization": f"Bearer {secret}"}, json.dumps(body).encode()), {})
    server.log.flush()
    with open(server.log.name) as log:
        assert secret not in log.read()
