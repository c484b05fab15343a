#!/usr/bin/env python3
"""Holds ekiben's tokenizers against the reference libraries: ids and text must be equal, and ours faster.

    python -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python compare.py --tool BUILD/src/text/tokenizer_tool              # 100,000 strings each, and MB/s
    venv/bin/python compare.py --tool BUILD/src/text/tokenizer_tool --quick      # 5,000 strings each, no timing
    ... --no-time --json FILE, then --time-only --json FILE     # the two halves, the second on a machine at rest

Exit code 1 when anything differs.
"""
import argparse
import datetime
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import references
import strings

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]


def pack_texts(texts):
    data = [t.encode() for t in texts]
    return struct.pack("<I", len(data)) + b"".join(struct.pack("<I", len(d)) + d for d in data)


def pack_ids(lists):
    return struct.pack("<I", len(lists)) + b"".join(struct.pack(f"<I{len(l)}i", len(l), *l) for l in lists)


def unpack_all(data, ids):
    count, = struct.unpack_from("<I", data)
    at, out = 4, []
    for _ in range(count):
        size, = struct.unpack_from("<I", data, at)
        at += 4
        if ids:
            out.append(list(struct.unpack_from(f"<{size}i", data, at)))
            at += size * 4
        else:
            out.append(data[at : at + size].decode())
            at += size
    return out


class Tool:
    def __init__(self, path, tokenizer, folder):
        self.path, self.tokenizer, self.folder = path, tokenizer, Path(folder)

    def run(self, *args):
        done = subprocess.run([self.path, *args], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{self.path} {' '.join(args)}: {done.stderr}")
        return done.stdout

    def convert(self, command, packed, ids, *flags):
        source, target = self.folder / "in", self.folder / "out"
        source.write_bytes(packed)
        self.run(command, self.tokenizer, str(source), str(target), *flags)
        return unpack_all(target.read_bytes(), ids)

    def encode(self, texts, *flags):
        return self.convert("encode", pack_texts(texts), True, *flags)

    def decode(self, lists, *flags):
        return self.convert("decode", pack_ids(lists), False, *flags)


def show(what, text, ours, theirs):
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    print(f"  DIFFERS {what}: {text[:300]!r}\n    ours   ...{ours[max(0, same - 2) : same + 12]!r}\n"
          f"    theirs ...{theirs[max(0, same - 2) : same + 12]!r}")


def count_differences(what, inputs, ours, theirs):
    wrong = [(i, a, b) for i, a, b in zip(inputs, ours, theirs) if a != b]
    assert len(ours) == len(theirs) == len(inputs)
    for text, a, b in sorted(wrong, key=lambda w: len(w[0]))[:3]:
        show(what, text, a, b)
    return len(wrong)


def repository_sources():
    names = subprocess.run(["git", "-C", REPOSITORY, "ls-files"], capture_output=True, text=True, check=True).stdout
    out = []
    for name in names.splitlines():
        try:
            out.append((REPOSITORY / name).read_bytes().decode())
        except (UnicodeDecodeError, OSError):
            pass
    return out


def compare(reference, tool, texts, seed):
    """Differences by check, and how many strings each saw."""
    result = {}
    for name, trusted, flags in (("encode", True, []), ("encode untrusted", False, ["--untrusted"])):
        ours, theirs = tool.encode(texts, *flags), reference.encode(texts, trusted)
        result[name] = (len(texts), count_differences(name, texts, ours, theirs))
        if trusted:
            ids = theirs
    rng = random.Random(seed)
    wild = [[rng.randrange(3, reference.vocab_size) for _ in range(rng.randrange(1, 12))] for _ in range(len(texts) // 10)]
    for name, lists in (("decode", ids), ("decode random ids", wild)):
        for suffix, skip, flags in (("", True, []), (" with special", False, ["--keep-special"])):
            theirs = [reference.decode(l, skip) for l in lists]
            if theirs and theirs[0] is None:
                continue
            for way in ([], ["--stream"]):
                ours = tool.decode(lists, *flags, *way)
                label = name + suffix + (" streamed" if way else "")
                result[label] = (len(lists), count_differences(label, lists, ours, theirs))
    return result


def make_corpus(path):
    """English and source code that every Debian machine with Python has, 8 MB."""
    import pydoc_data
    parts = [Path(pydoc_data.__file__).with_name("topics.py").read_text()]
    parts += [p.read_text() for p in sorted(Path("/usr/share/common-licenses").glob("*")) if p.is_file()]
    parts += repository_sources()
    for source in sorted(Path(os.__file__).parent.glob("*.py")):
        parts.append(source.read_text(errors="replace"))
    data = "\n".join(parts).encode()[:8_000_000].decode(errors="ignore")
    path.write_text(data)
    return data


def reference_speed(reference, text, seconds=4.0):
    """MB/s, line by line and as pieces of about 64 KiB (whole megabytes slow some references down)."""
    lines = text.splitlines(keepends=True)
    pieces, piece = [], ""
    for line in lines:
        piece += line
        if len(piece) > 65536:
            pieces.append(piece)
            piece = ""
    pieces.append(piece)
    out = {}
    for name, parts in (("lines", lines), ("pieces", pieces)):
        begin, size = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            for part in parts:
                reference.encode_one(part)
                size += len(part.encode())
                if time.perf_counter() - begin > seconds:
                    break
        out[name] = size / 1e6 / (time.perf_counter() - begin)
    return out


def measure(reference, tool, corpus, text):
    ours = {}
    for line in tool.run("time", tool.tokenizer, str(corpus), "2").splitlines():
        entry = json.loads(line)
        ours[entry["how"]] = entry["mb_per_s"]
    theirs = reference_speed(reference, text)
    best = max(theirs.values())
    return {"ours_mb_per_s": ours, "reference_mb_per_s": {k: round(v, 2) for k, v in theirs.items()},
            "ratio_lines": round(ours["lines"] / theirs["lines"], 2), "ratio_worst": round(min(ours.values()) / best, 2),
            "load": json.loads(tool.run("load", tool.tokenizer))}


def machine():
    model = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "unknown")
    return {"cpu": model, "cores": os.cpu_count(), "python": sys.version.split()[0]}


def write_results(args, results):
    commit = subprocess.run(["git", "-C", REPOSITORY, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    run = {"command": "compare.py " + " ".join(sys.argv[1:]), "commit": commit,
           "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    runs = [run]
    if args.time_only and args.json.exists():
        before = json.loads(args.json.read_text())
        runs = before["runs"] + runs
        results = {name: {**entry, "speed": results[name]["speed"]} if name in results else entry
                   for name, entry in before["results"].items()}
    args.json.write_text(json.dumps({
        "what": "tokenizers against their references: equality and MB/s on one core (by lines / whole)", "runs": runs,
        "machine": machine(), "seed": args.seed, "results": results}, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", required=True, help="the built tokenizer_tool")
    parser.add_argument("--quick", action="store_true", help="5,000 strings each, only what the issue names, no timing")
    parser.add_argument("--strings", type=int, help="random strings for each tokenizer")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--only", help="names, by comma: " + ",".join(references.REFERENCES))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/ekiben-oracles", help="downloaded vocabularies")
    parser.add_argument("--gguf", type=Path, help="SmolLM2's GGUF file, if it is here already")
    parser.add_argument("--no-time", action="store_true")
    parser.add_argument("--time-only", action="store_true", help="no strings; adds the speed to --json's file")
    parser.add_argument("--json", type=Path, help="write results here")
    args = parser.parse_args()
    count = args.strings or (5_000 if args.quick else 100_000)
    args.cache.mkdir(parents=True, exist_ok=True)
    names = args.only.split(",") if args.only else [n for n, r in references.REFERENCES.items() if r[1] or not args.quick]
    texts = [] if args.time_only else strings.make_strings(count, args.seed) + repository_sources()
    results, failed = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus_text = "" if args.quick or args.no_time else make_corpus(corpus)
        for name in names:
            make, _, known_only = references.REFERENCES[name]
            begin = time.perf_counter()
            reference = make(args.cache, args.gguf) if make is references.smollm2 else make(args.cache)
            tool = Tool(args.tool, reference.path, folder)
            inputs = [strings.assigned(t) for t in texts] if known_only else texts
            checks = {} if args.time_only else compare(reference, tool, inputs, args.seed)
            wrong = sum(w for _, w in checks.values())
            failed += wrong
            entry = {"library": reference.library, "strings": len(inputs), "differences": wrong,
                     "checks": {k: {"inputs": n, "differences": w} for k, (n, w) in checks.items()}}
            line = f"{name:16} {reference.library:20} {len(inputs):7} strings {len(checks):2} checks {wrong:6} differences"
            if corpus_text:
                entry["speed"] = measure(reference, tool, corpus, corpus_text)
                speed = entry["speed"]
                line += (f"  ours {speed['ours_mb_per_s']['lines']:6.1f} / {speed['ours_mb_per_s']['whole']:6.1f} MB/s"
                         f"  reference {speed['reference_mb_per_s']['lines']:5.1f} / {speed['reference_mb_per_s']['pieces']:5.1f}"
                         f"  {speed['ratio_worst']:5.1f}x")
            print(f"{line}  ({time.perf_counter() - begin:.0f} s)", flush=True)
            results[name] = entry
    if args.json:
        write_results(args, results)
    print(f"{failed} differences")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
