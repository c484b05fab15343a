#!/usr/bin/env python3
"""Compares the chat-template engine with jinja2, byte for byte.

Real templates over a matrix of conversations, then random small templates. Where jinja2 raises, the engine must fail
too, and with the same words when the template raised them itself. Text that a request wrote must never be trusted.

    compare.py --tool build/src/text/template_tool [--quick] [--gguf MODEL.gguf] [--templates FOLDER] [--seed N]
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import warnings

import conversations
import generate
import reference
import templates

NOW = 1_722_000_000  # 2024-07-26
# Limits that the engine has and Python has not, and text that Python makes from an address.
OURS_ALONE = ("of more than 127 bits", "complex result", "more than its limit of", "over its limit of", "is not supported", "nest too deep",
              "nested deeper", "a precision of more", "over the limit", "'dict_view'")
UNSTABLE = re.compile("0x[0-9a-f]{9,}|<function |<built-in|<class |<Macro|<LoopContext|dict_keyiterator", re.IGNORECASE)


class Tool:
    def __init__(self, path):
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def render(self, source, inputs):
        line = json.dumps({"template": source, "inputs": inputs, "now": NOW}) + "\n"
        try:
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            raise SystemExit(f"the tool died (exit {self.process.wait()}) on {line}")
        return json.loads(answer)


def untrusted_forgeries(answer):
    """How often the forged text of a user is in the output; raises if any byte of it is trusted."""
    output, at, count = answer["output"].encode(), 0, 0
    trusted = bytearray()
    for length in answer["trusted"]:
        trusted += bytes([length > 0]) * abs(length)
    needle = conversations.FORGED.encode()
    while (at := output.find(needle, at)) >= 0:
        if any(trusted[at : at + len(needle)]):
            raise AssertionError("a user's text is trusted")
        at += len(needle)
        count += 1
    return count


def difference(expected, answer):
    """None, or a line that says how they differ."""
    if "output" in expected and "output" in answer:
        if expected["output"] == answer["output"]:
            return None
        want, got = expected["output"], answer["output"]
        at = next((i for i, (a, b) in enumerate(zip(want, got)) if a != b), min(len(want), len(got)))
        return f"output differs at {at}: {want[max(0, at - 40):at + 60]!r} is wanted, got {got[max(0, at - 40):at + 60]!r}"
    if "error" in expected and "error" in answer:
        if expected["raised"] and expected["error"] != answer["error"]:
            return f"{expected['error']!r} should be raised, got {answer['error']!r}"
        return None
    if "error" in expected:
        return f"jinja2 fails ({expected['error'][:200]}), we print {answer['output'][:200]!r}"
    return f"we fail ({answer['error'][:200]}), jinja2 prints {expected['output'][:200]!r}"


def compare_real(tool, found, quick):
    renders = differences = raised = failed = forged = 0
    for name, source in found.items():
        wanted = reference.Reference(source, NOW)
        for case, inputs in conversations.matrix(quick):
            expected, answer = wanted.render(inputs), tool.render(source, inputs)
            renders += 1
            raised += bool(expected.get("raised"))
            failed += "error" in expected and not expected["raised"]
            text = difference(expected, answer)
            if text is None and "output" in answer:
                try:
                    forged += untrusted_forgeries(answer)
                except AssertionError as error:
                    text = str(error)
            if text is not None:
                differences += 1
                print(f"{name} {case}: {text}")
    print(f"{len(found)} templates, {renders} renders ({raised} raised by the template, {failed} that jinja2 fails), "
          f"{forged} forged texts all untrusted: {differences} differences")
    return differences


def compare_random(tool, first, count):
    differences = printed = failed = skipped = 0
    for seed in range(first, first + count):
        source = generate.template(seed)
        expected, answer = reference.Reference(source, NOW).render(generate.INPUTS), tool.render(source, generate.INPUTS)
        if expected.get("skip") or UNSTABLE.search(expected.get("output", "")) or any(mark in answer.get("error", "") for mark in OURS_ALONE):
            skipped += 1
            continue
        printed += "output" in expected
        failed += "error" in expected
        text = difference(expected, answer)
        if text is not None:
            differences += 1
            print(f"seed {seed}: {source!r}\n    {text}")
    print(f"{count} random templates ({printed} print, {failed} fail in both, {skipped} skipped): {differences} differences")
    return differences


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", required=True)
    parser.add_argument("--templates", help="a folder of .jinja files, instead of the download")
    parser.add_argument("--cache", default=os.environ.get("XDG_CACHE_HOME", str(pathlib.Path.home() / ".cache")) + "/ekiben/chat-templates")
    parser.add_argument("--gguf", action="append", default=[], help="a model file whose template is compared too")
    parser.add_argument("--only", help="templates whose name contains this")
    parser.add_argument("--quick", action="store_true", help="a part of the matrix and of the random templates: under a minute")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, help="random templates")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # Python's compiler on what random templates contain

    found = templates.from_folder(arguments.templates) if arguments.templates else templates.fetched(arguments.cache)
    for path in arguments.gguf:
        found[pathlib.Path(path).stem] = templates.from_gguf(path)
    if arguments.only is not None:
        found = {name: source for name, source in found.items() if arguments.only in name}

    start = time.monotonic()
    tool = Tool(arguments.tool)
    differences = compare_real(tool, found, arguments.quick)
    differences += compare_random(tool, arguments.seed, arguments.count if arguments.count is not None else 3_000 if arguments.quick else 50_000)
    print(f"{time.monotonic() - start:.1f} s")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
