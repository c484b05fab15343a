"""Bad requests: (name, surface, request, status, words of the answer's body).

A request is (method, path, headers, body) or raw bytes, sent as they are on a connection of their own. A status is one
number, or a set where the standard leaves a choice. `CASES` holds the surfaces that are always there, `KSERVE_CASES`
those of the KServe v2 routes; in a path, {model} is a model that is served.
"""
import gzip
import json
import zlib

JSON = {"Content-Type": "application/json"}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def post(path, body, headers=JSON):
    if not isinstance(body, (bytes, str)):
        body = json.dumps(body)
    return ("POST", path, headers, body.encode() if isinstance(body, str) else body)


def get(path, headers=None):
    return ("GET", path, headers or {}, b"")


def chat(**fields):
    return post(CHAT, {"messages": MESSAGES, "max_tokens": 2, **fields})


def completion(**fields):
    return post(COMPLETIONS, {"prompt": "hi", "max_tokens": 2, **fields})


def raw(head, body=b""):
    """Header lines joined by CRLF; the empty line is added."""
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


HOST = "Host: localhost"
POST_HEAD = [f"POST {COMPLETIONS} HTTP/1.1", HOST, "Content-Type: application/json"]
BODY = b'{"prompt":"a","max_tokens":1}'
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


def chunked(body):
    return raw(POST_HEAD + ["Transfer-Encoding: chunked"], body)


# ---- bytes that are no HTTP, or two messages to two readers

WIRE = [
    ("no request line", b"\x00\x01\x02\x03\r\n\r\n", 400, "header"),
    ("a TLS client hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 64 + b"\r\n\r\n", 400, ""),
    ("words", b"hello there\r\n\r\n", 400, ""),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}, ""),
    ("HTTP/0.9", b"GET /v1/models\r\n\r\n", 400, ""),
    ("version 1.2", raw(["GET /v1/models HTTP/1.2", HOST]), {400, 505}, ""),
    ("version 3", raw(["GET /v1/models HTTP/3.0", HOST]), {400, 505}, ""),
    ("version in small letters", raw(["GET /v1/models http/1.1", HOST]), {400, 505}, ""),
    ("no version digits", raw(["GET /v1/models HTTP/", HOST]), {400, 505}, ""),
    ("two spaces", raw(["GET  /v1/models HTTP/1.1", HOST]), 400, ""),
    ("a tab for a space", raw(["GET\t/v1/models HTTP/1.1", HOST]), 400, ""),
    ("a space in the target", raw(["GET /v1/models x HTTP/1.1", HOST]), {400, 505}, ""),
    ("NUL in the target", raw(["GET /v1/mo\0dels HTTP/1.1", HOST]), 400, "NUL"),
    ("a target without slash", raw(["GET v1/models HTTP/1.1", HOST]), 400, "request target"),
    ("a method with a bracket", raw(["G(ET /v1/models HTTP/1.1", HOST]), 400, ""),
    ("no host", raw(["GET /v1/models HTTP/1.1"]), 400, "host"),
    ("two hosts", raw(["GET /v1/models HTTP/1.1", HOST, "Host: elsewhere"]), 400, "host"),
    ("a space before the colon", raw(["GET /v1/models HTTP/1.1", HOST, "X-Field : 1"]), 400, ""),
    ("content-length with a space before its colon", raw(POST_HEAD + ["Content-Length : 29"], BODY), 400, ""),
    ("a field without colon", raw(["GET /v1/models HTTP/1.1", HOST, "nonsense"]), 400, ""),
    ("a field without name", raw(["GET /v1/models HTTP/1.1", HOST, ": value"]), 400, ""),
    ("a field name with a newline's bytes", raw(["GET /v1/models HTTP/1.1", HOST, "X\x0b: 1"]), 400, ""),
    ("NUL in a value", raw(["GET /v1/models HTTP/1.1", HOST, "X: a\0b"]), 400, "NUL"),
    ("a control character in a value", raw(["GET /v1/models HTTP/1.1", HOST, "X: a\x07b"]), 400, ""),
    ("a folded line", raw(["GET /v1/models HTTP/1.1", HOST, "X: a", " b"]), 400, "folded"),
    ("a folded transfer-encoding", raw(POST_HEAD + ["Transfer-Encoding:", " chunked"], b"0\r\n\r\n"), 400, "folded"),
    ("a first line that is folded", raw(["GET /v1/models HTTP/1.1", " Host: localhost"]), 400, "folded"),
    ("bare LF ends a line", b"GET /v1/models HTTP/1.1\nHost: localhost\n\n", 400, "bare LF"),
    ("bare LF hides a field", raw(POST_HEAD + ["X: a\nTransfer-Encoding: chunked", "Content-Length: 0"]), 400, "bare LF"),
    ("bare CR in a value", raw(["GET /v1/models HTTP/1.1", HOST, "X: a\rb"]), 400, "bare CR"),
    ("length beside chunked", raw(POST_HEAD + ["Content-Length: 5", "Transfer-Encoding: chunked"], b"0\r\n\r\n" + SMUGGLED), 400, ""),
    ("chunked beside length", raw(POST_HEAD + ["Transfer-Encoding: chunked", "Content-Length: 5"], b"0\r\n\r\n" + SMUGGLED), 400, ""),
    ("two lengths that differ", raw(POST_HEAD + ["Content-Length: 29", "Content-Length: 5"], BODY), 400, ""),
    ("two equal lengths", raw(POST_HEAD + ["Content-Length: 29", "Content-Length: 29"], BODY), 400, ""),
    ("a list of lengths", raw(POST_HEAD + ["Content-Length: 29, 29"], BODY), 400, ""),
    ("a length with a plus", raw(POST_HEAD + ["Content-Length: +29"], BODY), 400, ""),
    ("a negative length", raw(POST_HEAD + ["Content-Length: -1"], BODY), 400, ""),
    ("a hexadecimal length", raw(POST_HEAD + ["Content-Length: 0x1d"], BODY), 400, ""),
    ("a length with a fraction", raw(POST_HEAD + ["Content-Length: 29.0"], BODY), 400, ""),
    ("an empty length", raw(POST_HEAD + ["Content-Length: "], BODY), 400, ""),
    ("a length over 64 bits", raw(POST_HEAD + ["Content-Length: 18446744073709551645"], BODY), {400, 413}, ""),
    ("a length over the limit", raw(POST_HEAD + ["Content-Length: 17000000"]), 413, "16777216"),
    ("a length over the limit, with expect", raw(POST_HEAD + ["Content-Length: 17000000", "Expect: 100-continue"]), 413, "16777216"),
    ("another expectation", raw(POST_HEAD + ["Content-Length: 29", "Expect: 200-ok"], BODY), 417, "expect"),
    ("coding identity", raw(POST_HEAD + ["Transfer-Encoding: identity"], BODY), {400, 501}, "transfer-encoding"),
    ("coding gzip", raw(POST_HEAD + ["Transfer-Encoding: gzip"], BODY), 501, "transfer-encoding"),
    ("coding gzip, chunked", raw(POST_HEAD + ["Transfer-Encoding: gzip, chunked"], b"0\r\n\r\n"), 501, "transfer-encoding"),
    ("coding chunked, chunked", raw(POST_HEAD + ["Transfer-Encoding: chunked, chunked"], b"0\r\n\r\n"), {400, 501}, ""),
    ("coding chunked twice", raw(POST_HEAD + ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], b"0\r\n\r\n"), {400, 501}, ""),
    ("coding xchunked", raw(POST_HEAD + ["Transfer-Encoding: xchunked"], b"0\r\n\r\n"), 501, "transfer-encoding"),
    ("coding with a vertical tab", raw(POST_HEAD + ["Transfer-Encoding: \x0bchunked"], b"0\r\n\r\n"), {400, 501}, ""),
    ("coding in HTTP/1.0", raw([f"POST {COMPLETIONS} HTTP/1.0", "Transfer-Encoding: chunked"], b"0\r\n\r\n"), 400, ""),
    ("a chunk size that is no number", chunked(b"zz\r\nabc\r\n0\r\n\r\n"), 400, "body"),
    ("a chunk size with 0x", chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), 400, "body"),
    ("a chunk size with a plus", chunked(b"+3\r\nabc\r\n0\r\n\r\n"), 400, "body"),
    ("a negative chunk size", chunked(b"-3\r\nabc\r\n0\r\n\r\n"), 400, "body"),
    ("a chunk size over 64 bits", chunked(b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"), {400, 413}, "body"),
    ("a chunk over the limit", chunked(b"7fffffff\r\nabc"), 413, "16777216"),
    ("a chunk longer than its size", chunked(b"3\r\nabcdef\r\n0\r\n\r\n"), 400, "body"),
    ("a chunk that ends in LF", chunked(b"3\r\nabc\n0\r\n\r\n"), 400, "body"),
    ("a size line that ends in LF", chunked(b"3\nabc\r\n0\r\n\r\n"), 400, ""),
    ("a chunk extension without end", chunked(b"3;" + b"a" * 5000), 400, ""),
    ("a trailer without end", chunked(b"0\r\nX: " + b"a" * 5000), 400, ""),
    ("too many chunks", chunked(b"1\r\na\r\n" * 17_000), 413, "chunks"),
    ("a header without end", b"GET /v1/models HTTP/1.1\r\nX: " + b"a" * 40_000, 431, "32768"),
    ("a target without end", b"GET /" + b"a" * 40_000, 431, ""),
    ("too many fields", raw(["GET /v1/models HTTP/1.1", HOST] + [f"X-{i}: 1" for i in range(150)]), 431, "100"),
]

# ---- routes, methods, types and codings of a body

ROUTES = [
    ("no such route", get("/v2x"), 404, ""),
    ("no such v1 route", get("/v1/engines"), 404, "no such route"),
    ("a doubled slash", get("//v1/models"), 404, ""),
    ("a dot segment", get("/v1/../v1/models"), 404, ""),
    ("an encoded letter", get("/%761/models"), 404, ""),
    ("an encoded slash", get("/v1%2fmodels"), 404, ""),
    ("a path out of the tree", get("/../../etc/passwd"), 404, ""),
    ("a trailing slash", get("/v1/models/"), 404, ""),
    ("no such model", get("/v1/models/none"), 404, "none"),
    ("a model's name with a path", get("/v1/models/..%2f..%2fetc%2fpasswd"), 404, "not served"),
    ("GET on chat", get(CHAT), 405, "POST"),
    ("DELETE on chat", ("DELETE", CHAT, {}, b""), 405, "POST"),
    ("PUT on completions", ("PUT", COMPLETIONS, JSON, BODY), 405, "POST"),
    ("PATCH on completions", ("PATCH", COMPLETIONS, JSON, BODY), 405, "POST"),
    ("a method of one's own", ("BREW", COMPLETIONS, JSON, BODY), {400, 405}, ""),
    ("TRACE", ("TRACE", "/v1/models", {}, b""), 405, ""),
    ("CONNECT", raw(["CONNECT localhost:80 HTTP/1.1", HOST]), {400, 404, 405}, ""),
    ("POST on models", post("/v1/models", {}), 405, "GET"),
    ("POST on healthz", post("/healthz", {}), 405, ""),
    ("POST on readyz", post("/readyz", {}), 405, ""),
    ("POST on metrics", post("/metrics", {}), 405, ""),
    ("GET on generate", get("/generate"), 405, "Method Not Allowed"),
    ("GET on tokenize", get("/tokenize"), 405, ""),
    ("a form on chat", post(CHAT, b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}), 415, "content-type"),
    ("text on chat", post(CHAT, BODY, {"Content-Type": "text/plain"}), 415, "content-type"),
    ("XML on completions", post(COMPLETIONS, b"<a/>", {"Content-Type": "application/xml"}), 415, "content-type"),
    ("a multipart body", post(COMPLETIONS, b"--a\r\n", {"Content-Type": "multipart/form-data; boundary=a"}), 415, "content-type"),
    ("a pickle on generate", post("/generate", b"\x80\x04.", {"Content-Type": "application/vnd.bentoml+pickle"}), 415, "pickle"),
    ("coding br", post(COMPLETIONS, BODY, {**JSON, "Content-Encoding": "br"}), 415, "content-encoding"),
    ("coding zstd on generate", post("/generate", BODY, {**JSON, "Content-Encoding": "zstd"}), 415, "content-encoding"),
    ("two codings", post(COMPLETIONS, BODY, {**JSON, "Content-Encoding": "gzip, gzip"}), 415, "content-encoding"),
    ("gzip that is none", post(COMPLETIONS, BODY, {**JSON, "Content-Encoding": "gzip"}), 400, "gzip"),
    ("gzip that is cut", post(CHAT, gzip.compress(BODY)[:-3], {**JSON, "Content-Encoding": "gzip"}), 400, "gzip"),
    ("gzip and more", post(CHAT, gzip.compress(BODY) + b"x", {**JSON, "Content-Encoding": "gzip"}), 400, "body"),
    ("gzip with a wrong checksum", post(CHAT, gzip.compress(BODY)[:-8] + b"\0" * 8, {**JSON, "Content-Encoding": "gzip"}), 400, "gzip"),
    ("deflate that is none", post(CHAT, BODY, {**JSON, "Content-Encoding": "deflate"}), 400, "deflate"),
    ("a bomb", post(CHAT, gzip.compress(b" " * 15_000_000, 9), {**JSON, "Content-Encoding": "gzip"}), 413, "200 times"),
    ("a larger bomb", post(CHAT, zlib.compress(b"[" * 40_000_000, 9), {**JSON, "Content-Encoding": "deflate"}), 413, "decoded"),
    ("a bomb on generate", post("/generate", gzip.compress(b"a" * 40_000_000, 1), {**JSON, "Content-Encoding": "gzip"}), 413, "decoded"),
]

# ---- JSON

TEXTS = [
    ("empty", b"", "body"),
    ("white space", b"  \n", "JSON"),
    ("not closed", b'{"prompt":"a"', "JSON"),
    ("not opened", b'"prompt":"a"}', "JSON"),
    ("a trailing comma", b'{"prompt":"a",}', "JSON"),
    ("a comment", b'{"prompt":"a"/*x*/}', "JSON"),
    ("single quotes", b"{'prompt':'a'}", "JSON"),
    ("a name without quotes", b'{prompt:"a"}', "JSON"),
    ("two values", b'{"prompt":"a"}{"prompt":"b"}', "JSON"),
    ("a byte after the value", b'{"prompt":"a"}\0', "JSON"),
    ("NUL before the value", b'\0{"prompt":"a"}', "JSON"),
    ("a byte order mark", b'\xef\xbb\xbf{"prompt":"a"}', "JSON"),
    ("UTF-16", '{"prompt":"a"}'.encode("utf-16"), "JSON"),
    ("invalid UTF-8", b'{"prompt":"\xff\xfe"}', "JSON"),
    ("overlong UTF-8", b'{"prompt":"\xc0\xaf"}', "JSON"),
    ("a surrogate in UTF-8", b'{"prompt":"\xed\xa0\x80"}', "JSON"),
    ("cut UTF-8", b'{"prompt":"\xe9\xa7"}', "JSON"),
    ("a raw newline in a string", b'{"prompt":"a\nb"}', "JSON"),
    ("a raw NUL in a string", b'{"prompt":"a\0b"}', "JSON"),
    ("an escape that is none", rb'{"prompt":"\x41"}', "JSON"),
    ("half a surrogate pair", rb'{"prompt":"\ud800"}', "JSON"),
    ("an array", b"[]", "an object is wanted"),
    ("a string", b'"prompt"', "an object is wanted"),
    ("null", b"null", "an object is wanted"),
    ("NaN", b'{"prompt":"a","temperature":NaN}', "JSON"),
    ("Infinity", b'{"prompt":"a","temperature":Infinity}', "JSON"),
    ("a number with a leading zero", b'{"prompt":"a","temperature":01}', "JSON"),
    ("a hexadecimal number", b'{"prompt":"a","max_tokens":0x10}', "JSON"),
    ("a number over all floats", b'{"prompt":"a","temperature":1e999}', ""),
    ("deep arrays", b"[" * 100_000, "JSON"),
    ("deep objects", b'{"a":' * 100_000, "JSON"),
    ("a deep value in a known object", b'{"prompt":"a","x":' + b"[" * 70 + b"]" * 70 + b"}", "JSON"),
]
JSON_CASES = [(f"{name} on {path}", post(path, text), 400, "" if words == "an object is wanted" and path == CHAT else words.replace("an object", "JSON object"))
              for name, text, words in TEXTS for path in (CHAT, COMPLETIONS)]

# ---- fields

FIELDS = [(f"{kind.__name__} {list(fields.items())!r:.80}", kind(**fields), 400, words) for kind, fields, words in [
    (completion, {"prompt": None}, "prompt"), (completion, {"prompt": []}, "prompt"), (completion, {"prompt": 5}, "prompt"),
    (completion, {"prompt": {}}, "prompt"), (completion, {"prompt": [[1], 5]}, "prompt"), (completion, {"prompt": [1, "a"]}, "prompt"),
    (completion, {"prompt": [1.5]}, "prompt"), (completion, {"prompt": [-1]}, "outside"), (completion, {"prompt": [2**31]}, "outside"),
    (completion, {"prompt": [10**7]}, ""), (completion, {"prompt": ["a"] * 513}, "512"), (completion, {"prompt": "a " * 20_000}, "max_input_len"),
    (completion, {"max_tokens": -1}, "max_tokens"), (completion, {"max_tokens": 0}, "max_tokens"), (completion, {"max_tokens": "5"}, "max_tokens"),
    (completion, {"max_tokens": 1.5}, "max_tokens"), (completion, {"max_tokens": 2**40}, "max_tokens"), (completion, {"max_tokens": 10**7}, ""),
    (completion, {"n": 0}, "n:"), (completion, {"n": 129}, "128"), (completion, {"n": -1}, "n:"), (completion, {"n": 128, "prompt": ["a"] * 9}, "1024"),
    (completion, {"best_of": 1, "n": 2}, "best_of"), (completion, {"logprobs": -1}, "logprobs"), (completion, {"logprobs": 1000}, "logprobs"),
    (completion, {"suffix": "x"}, "suffix"), (completion, {"stream": "yes"}, "stream"), (completion, {"stream_options": {}}, "stream_options"),
    (completion, {"temperature": -0.1}, "temperature"), (completion, {"temperature": 2.1}, "temperature"), (completion, {"temperature": "hot"}, "temperature"),
    (completion, {"temperature": 1e308}, "temperature"), (completion, {"top_p": 1.1}, "top_p"), (completion, {"top_p": -1}, "top_p"),
    (completion, {"top_k": -2}, "top_k"), (completion, {"top_k": 2**40}, "top_k"), (completion, {"min_p": 2}, "min_p"),
    (completion, {"presence_penalty": 3}, "presence_penalty"), (completion, {"frequency_penalty": -3}, "frequency_penalty"),
    (completion, {"repetition_penalty": 0}, "repetition_penalty"), (completion, {"seed": 2**64}, "seed"), (completion, {"seed": "x"}, "seed"),
    (completion, {"stop": 5}, "stop"), (completion, {"stop": ["a"] * 17}, "stop"), (completion, {"stop": [1]}, "stop"),
    (completion, {"stop": "a" * 2000}, "stop"), (completion, {"logit_bias": []}, "logit_bias"), (completion, {"logit_bias": {"x": 1}}, "logit_bias"),
    (completion, {"logit_bias": {"5": 101}}, "logit_bias"), (completion, {"logit_bias": {"5": "a"}}, "logit_bias"),
    (completion, {"logit_bias": {"99999999": 1}}, "logit_bias"), (completion, {"stop_token_ids": ["a"]}, "stop_token_ids"),
    (completion, {"bad_words": ["a"] * 200}, "bad_words"), (completion, {"allowed_token_ids": []}, "allowed_token_ids"),
    (completion, {"cache_salt": ""}, "cache_salt"), (completion, {"priority": 10**9}, "priority"), (completion, {"min_tokens": 9, "max_tokens": 5}, ""),
    (completion, {"use_beam_search": True}, "use_beam_search"), (completion, {"model": 5}, "model"),
    (chat, {"messages": None}, "messages"), (chat, {"messages": []}, "messages"), (chat, {"messages": "hi"}, "messages"),
    (chat, {"messages": ["hi"]}, "messages"), (chat, {"messages": [{}]}, ""), (chat, {"messages": [{"role": 5, "content": "a"}]}, ""),
    (chat, {"messages": [{"role": "user", "content": 5}]}, ""), (chat, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, ""),
    (chat, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, ""), (chat, {"messages": [{"role": "user", "content": [5]}]}, ""),
    (chat, {"top_logprobs": 5}, "top_logprobs"), (chat, {"logprobs": True, "top_logprobs": 99}, "top_logprobs"), (chat, {"logprobs": 1}, "logprobs"),
    (chat, {"max_tokens": 0}, "max_tokens"), (chat, {"max_completion_tokens": 0}, "max_completion_tokens"), (chat, {"n": 1000}, "n:"),
    (chat, {"tools": 5}, "tools"), (chat, {"tools": [{"type": "x"}]}, "tools"), (chat, {"tool_choice": "sometimes"}, "tool_choice"),
    (chat, {"response_format": {"type": "yaml"}}, "response_format"), (chat, {"response_format": {"type": "json_schema"}}, ""),
    (chat, {"functions": []}, "functions"), (chat, {"audio": {}}, "audio"), (chat, {"modalities": ["audio"]}, "modalities"), (chat, {"echo": True}, "echo"),
]] + [
    ("an unknown model in chat", chat(model="none"), 404, "none"),
    ("an unknown model in completions", completion(model="../m"), 404, "not served"),
    ("tokenize without a prompt", post("/tokenize", {}), 400, "prompt"),
    ("tokenize of a number", post("/tokenize", {"prompt": 5}), 400, "prompt"),
    ("detokenize without tokens", post("/detokenize", {}), 400, "tokens"),
    ("detokenize of words", post("/detokenize", {"tokens": ["a"]}), 400, "tokens"),
    ("detokenize of an id that is none", post("/detokenize", {"tokens": [10**8]}), 400, "outside"),
]

BENTO = [(f"generate {body!r:.60}", post("/generate", body), 400, words) for body, words in [
    ('{"max_tokens":127}', "greater_than_equal"), ('{"max_tokens":1025}', "less_than_equal"), ('{"max_tokens":300.5}', "int_from_float"),
    ('{"max_tokens":null}', "int_type"), ('{"max_tokens":[1]}', "int_type"), ('{"max_tokens":"abc"}', "int_parsing"),
    ('{"max_tokens":1e99}', ""), ('{"max_tokens":99999999999999999999}', ""), ('{"prompt":null}', "string_type"), ('{"prompt":5}', "string_type"),
    ('{"system_prompt":[]}', "string_type"), ("[1]", "model_type"), ('"a"', "model_type"), ("{bad", "json_invalid"), ("[" * 100_000, ""),
    (b'{"prompt":"\xff"}', "json_invalid"), ('{"prompt":1,"max_tokens":1}', "2 validation error for Input"), ('{"prompt":NaN}', ""),
]]

CASES = ([(name, "wire", *rest) for name, *rest in WIRE] + [(name, "routes", *rest) for name, *rest in ROUTES] +
         [(name, "json", *rest) for name, *rest in JSON_CASES] + [(name, "openai", *rest) for name, *rest in FIELDS] +
         [(name, "bento", *rest) for name, *rest in BENTO])

# ---- KServe v2

INFER = "/v2/models/ensemble/infer"
GENERATE = "/v2/models/ensemble/generate"


def tensor(name="text_input", datatype="BYTES", shape=(1, 1), data=("hi",), **more):
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": list(data), **more}


LENGTH = tensor("max_tokens", "INT32", (1, 1), (4,))


def infer(*inputs, **more):
    return post(INFER, {"inputs": list(inputs), **more})


def binary(header, tail, length=None):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return post(INFER, text + tail, {"Content-Type": "application/octet-stream",
                                     "Inference-Header-Content-Length": str(len(text) if length is None else length)})


def binary_input(size, shape=(1, 1), **more):
    return {"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": list(shape), "parameters": {"binary_data_size": size}, **more}, LENGTH]}


HI = b"\x02\0\0\0hi"
KSERVE = [
    ("an unknown model", get("/v2/models/none"), {400, 404}, "none"),
    ("an unknown model's readiness", get("/v2/models/none/ready"), {400, 404}, ""),
    ("an unknown model's config", get("/v2/models/none/config"), {400, 404}, ""),
    ("an unknown model's inference", post("/v2/models/none/infer", {"inputs": []}), {400, 404}, "none"),
    ("an unknown version", post("/v2/models/ensemble/versions/7/infer", {"inputs": [tensor(), LENGTH]}), {400, 404}, ""),
    ("a version that is no number", post("/v2/models/ensemble/versions/x/infer", {"inputs": [tensor(), LENGTH]}), {400, 404}, ""),
    ("a route that is none", get("/v2/models/ensemble/nothing"), {400, 404, 405}, ""),
    ("GET on infer", get(INFER), {400, 405}, ""),
    ("GET on generate", get(GENERATE), {400, 405}, ""),
    ("a model's name with a path", post("/v2/models/..%2f..%2fetc/infer", {"inputs": []}), {400, 404}, ""),
    ("no body", post(INFER, b""), 400, ""),
    ("no inputs", post(INFER, {}), 400, "inputs"),
    ("inputs that are no list", post(INFER, {"inputs": {}}), 400, ""),
    ("an input that is no object", post(INFER, {"inputs": [5]}), 400, ""),
    ("an input without name", infer({"datatype": "BYTES", "shape": [1, 1], "data": ["a"]}), 400, ""),
    ("an input without datatype", infer({"name": "text_input", "shape": [1, 1], "data": ["a"]}), 400, ""),
    ("an input without shape", infer({"name": "text_input", "datatype": "BYTES", "data": ["a"]}), 400, ""),
    ("an input without data", infer({"name": "text_input", "datatype": "BYTES", "shape": [1, 1]}), 400, ""),
    ("an unknown input", infer(tensor(), LENGTH, tensor("nothing")), 400, "nothing"),
    ("a missing input", infer(tensor()), 400, "max_tokens"),
    ("the same input twice", infer(tensor(), tensor(), LENGTH), 400, "text_input"),
    ("a datatype that is none", infer(tensor(datatype="TEXT"), LENGTH), 400, ""),
    ("another datatype", infer(tensor(datatype="INT32", data=[1]), LENGTH), 400, "text_input"),
    ("a negative dimension", infer(tensor(shape=[-1, 1]), LENGTH), 400, ""),
    ("a dimension of 2^63", infer(tensor(shape=[2**63, 1]), LENGTH), 400, ""),
    ("dimensions whose product wraps", infer(tensor(shape=[2**33, 2**33]), LENGTH), 400, ""),
    ("a dimension that is no number", infer(tensor(shape=["1", 1]), LENGTH), 400, ""),
    ("a shape that is no list", infer({**tensor(), "shape": 1}, LENGTH), 400, ""),
    ("too few elements", infer(tensor(shape=[1, 2]), LENGTH), 400, ""),
    ("too many elements", infer(tensor(data=["a", "b"]), LENGTH), 400, ""),
    ("elements of another type", infer(tensor(data=[5]), LENGTH), 400, ""),
    ("a number out of its type", infer(tensor(), tensor("max_tokens", "INT32", data=[2**40])), 400, ""),
    ("a fraction for an integer", infer(tensor(), tensor("max_tokens", "INT32", data=[1.5])), 400, ""),
    ("too few max_tokens", infer(tensor(), tensor("max_tokens", "INT32", data=[-1])), 400, "max_tokens"),
    ("an unknown output", infer(tensor(), LENGTH, outputs=[{"name": "nothing"}]), 400, "nothing"),
    ("outputs that are no list", infer(tensor(), LENGTH, outputs={}), 400, ""),
    ("an id that is no text", infer(tensor(), LENGTH, id=5), 400, "Unable to parse 'id'"),
    ("deep JSON", post(INFER, b'{"inputs":' + b"[" * 100_000), 400, ""),
    ("deep data", post(INFER, b'{"inputs":[{"name":"text_input","datatype":"BYTES","shape":[1,1],"data":' + b"[" * 99 + b"]" * 99 + b"}]}"), 400, ""),
    ("invalid UTF-8", post(INFER, b'{"inputs":[{"name":"\xff"}]}'), 400, ""),
    ("NaN", post(INFER, b'{"inputs":[{"name":"temperature","datatype":"FP32","shape":[1,1],"data":[NaN]}]}'), 400, ""),
    ("a header length over the body", binary(binary_input(6), HI, 100_000), 400, ""),
    ("a negative header length", binary(binary_input(6), HI, -1), 400, ""),
    ("a header length that is no number", binary(binary_input(6), HI, "x"), 400, ""),
    ("a header length within the header", binary(binary_input(6), HI, 10), 400, ""),
    ("a header length of 2^64 + 1", binary(binary_input(6), HI, 2**64 + 1), 400, ""),
    ("fewer bytes than said", binary(binary_input(60), HI), 400, ""),
    ("more bytes than said", binary(binary_input(6), HI + b"rest"), 400, ""),
    ("a negative binary size", binary(binary_input(-6), HI), 400, ""),
    ("a binary size of 2^63", binary(binary_input(2**63), HI), 400, ""),
    ("a binary size that is text", binary(binary_input("6"), HI), 400, ""),
    ("data beside a binary size", binary(binary_input(6, data=["a"]), HI), 400, ""),
    ("an element longer than the tensor", binary(binary_input(6), b"\xff\xff\xff\x7fhi"), 400, ""),
    ("an element's length cut", binary(binary_input(3), b"\x02\0\0"), 400, ""),
    ("two elements for one", binary(binary_input(12), HI + HI), 400, ""),
    ("bytes of no tensor", binary({"inputs": [tensor(), LENGTH]}, HI), 400, ""),
    ("generate without its input", post(GENERATE, {}), 400, ""),
    ("generate with a list", post(GENERATE, []), 400, ""),
    ("generate of a number", post(GENERATE, {"text_input": 5, "max_tokens": 4}), 400, ""),
    ("generate with nested parameters that are none", post(GENERATE, {"text_input": "a", "max_tokens": 4, "parameters": 5}), 400, "Expected JSON object for keyword: 'parameters'"),
    ("generate with text for a number", post(GENERATE, {"text_input": "a", "max_tokens": "many"}), 400, ""),
    ("generate of nothing", post(GENERATE, b"{"), 400, ""),
    ("generate_stream without its input", post(GENERATE + "_stream", {}), 400, ""),
    ("a coding that is not read", post(INFER, b"{}", {**JSON, "Content-Encoding": "br"}), 415, ""),
    ("a bomb", post(INFER, gzip.compress(b" " * 15_000_000, 9), {**JSON, "Content-Encoding": "gzip"}), 413, ""),
    ("loading without the right to", post("/v2/repository/models/ensemble/load", {}), {400, 403}, ""),
    ("unloading without the right to", post("/v2/repository/models/ensemble/unload", {}), {400, 403}, ""),
    ("shared memory", post("/v2/systemsharedmemory/region/a/register", {"key": "/a", "offset": 0, "byte_size": 1}), 501, "shared_memory_prefix"),
]
KSERVE_CASES = [(name, "kserve", *rest) for name, *rest in KSERVE]
