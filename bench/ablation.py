#!/usr/bin/env python3
"""What each option gives: the same load with and without it, taking turns, medians of the rounds.

usage: bench/ablation.py [--program build/release/ekiben] [--model FILE] [--rounds 3] [--duration 20] [--only NAME]
                         [--output bench/results/ablation.json]

Each case names a load (users, prompts) and two settings. Everything runs in process (no HTTP), so that the option and not
the socket is measured; the cases of postprocessing_instance_count run on the fake backend for the same reason.
"""
import argparse
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def mixed_prompts(path, seed):
    """Answers of 8 to 256 tokens: what makes a static batch wait for its longest."""
    words = "river stone quiet morning engine carries seven letters across the narrow valley before winter".split()
    rng = random.Random(seed)
    with open(path, "w") as f:
        for _ in range(4000):
            text = " ".join(rng.choice(words) for _ in range(rng.randint(20, 120)))
            f.write(json.dumps({"prompt": text, "max_tokens": rng.choice([8, 16, 32, 64, 128, 256])}) + "\n")


def questions(path, seed):
    """Conversations that announce 1,024 tokens and that the model ends by itself, mostly within 16 to 100."""
    subjects = ("a river,the moon,bread,a bicycle,the heart,a library,rain,a volcano,honey,a computer,the violin,glass,"
                "a bridge,cheese,the eye,an island,snow,a clock,the desert,a garden,salt,a mirror,coffee,a train,"
                "the wind,a candle,paper,a horse,the sun,a ship,wool,a map").split(",")
    asks = ["Tell me about {} in three sentences.", "Write a two-sentence story about {}.", "Describe {} in five sentences.",
            "Say something kind about {} in two sentences."]
    prompts = [ask.format(subject) for ask in asks for subject in subjects]
    random.Random(seed).shuffle(prompts)
    with open(path, "w") as f:
        for prompt in prompts:
            f.write(json.dumps({"messages": [{"role": "user", "content": prompt}], "max_tokens": 1024}) + "\n")


# name, what it is measured by, load, settings: base and changed
CASES = [
    ("batching_strategy", "tokens_per_s", dict(users=16, mixed=True), ["--batching_strategy", "V1"],
     ["--batching_strategy", "inflight_fused_batching"], "V1 (static) -> in-flight, 16 users, answers of 8 to 256 tokens"),
    ("enable_chunked_context", "itl_ms_p99", dict(users=8, prompt=900, output=48),
     ["--enable_chunked_context", "disable", "--max_num_tokens", "1024"],
     ["--enable_chunked_context", "enable", "--max_num_tokens", "160"],
     "whole prompts (max_num_tokens 1024) -> chunks (160), 8 users, 900 in, 48 out"),
    ("batch_scheduler_policy", "tokens_per_s", dict(users=24, prompt=60, output=200),
     ["--batch_scheduler_policy", "guaranteed_no_evict", "--max_tokens_in_paged_kv_cache", "3072", "--max_seq_len", "1024"],
     ["--batch_scheduler_policy", "max_utilization", "--max_tokens_in_paged_kv_cache", "3072", "--max_seq_len", "1024"],
     "guaranteed_no_evict -> max_utilization, cache of 3,072 tokens, 24 users, 60 in, all of the announced 200 out"),
    ("batch_scheduler_policy", "tokens_per_s", dict(users=50, questions=True),
     ["--batch_scheduler_policy", "guaranteed_no_evict", "--max_tokens_in_paged_kv_cache", "10880"],
     ["--batch_scheduler_policy", "max_utilization", "--max_tokens_in_paged_kv_cache", "10880"],
     "guaranteed_no_evict -> max_utilization, cache of 10 whole reservations, 50 users, questions that announce 1,024 "
     "tokens and end by themselves"),
    ("context_admission_policy", "ttft_ms_p99", dict(users=10, prompt=100, output=64),
     ["--context_admission_policy", "greedy"], ["--context_admission_policy", "paced"],
     "greedy (all that fit) -> paced, 10 users, 100 in, 64 out"),
    ("enable_kv_cache_reuse", "ttft_ms_p50", dict(users=4, prompt=1064, output=32, prefix=1000),
     ["--enable_kv_cache_reuse", "disable"], ["--enable_kv_cache_reuse", "enable"],
     "off -> on, 4 users, prompts of 1,064 tokens that share the first 1,000"),
    ("max_num_tokens", "tokens_per_s", dict(users=32, prompt=200, output=32), ["--max_num_tokens", "64"],
     ["--max_num_tokens", "512"], "64 -> 512, 32 users, 200 in, 32 out"),
    ("multiple_profiles", "tokens_per_s", dict(users=10, prompt=100, output=64), ["--multiple_profiles", "disable"],
     ["--multiple_profiles", "enable"], "disable -> enable, 10 users, 100 in, 64 out"),
    ("postprocessing_instance_count", "tokens_per_s", dict(users=64, prompt=20, output=200),
     ["--device", "fake", "--postprocessing_instance_count", "1"],
     ["--device", "fake", "--postprocessing_instance_count", "2"],
     "1 -> 2 on a backend that costs nothing, 64 users, 20 in, 200 out"),
    ("max_batch_size", "tokens_per_s", dict(users=32, prompt=100, output=64), ["--max_batch_size", "4"],
     ["--max_batch_size", "64"], "4 -> 64, 32 users, 100 in, 64 out"),
]


def run(program, model, load, settings, duration, folder, seed):
    command = [program, "bench", "--in-process", model, "--users", str(load["users"]), "--ramp", "2", "--duration",
               str(duration), "--seed", str(seed), "--json", *settings]
    if load.get("mixed"):
        path = os.path.join(folder, f"mixed_{seed}.jsonl")
        mixed_prompts(path, seed)
        command += ["--prompts_file", path, "--ignore_eos"]
    elif load.get("questions"):
        path = os.path.join(folder, f"questions_{seed}.jsonl")
        questions(path, seed)
        command += ["--prompts_file", path, "--api", "chat"]
    else:
        command += ["--prompt_tokens", str(load["prompt"]), "--output_tokens", str(load["output"]), "--ignore_eos"]
        if "prefix" in load:
            command += ["--shared_prefix_tokens", str(load["prefix"])]
    if not any(s == "--enable_kv_cache_reuse" for s in settings):
        command += ["--enable_kv_cache_reuse", "disable"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    level = json.loads(done.stdout)["levels"][0]
    completed = level["requests"]["completed"]
    return {"tokens_per_s": level["tokens_per_s"], "requests_per_s": level["requests_per_s"],
            "answer_tokens_mean": level["output_tokens"] / completed if completed else None,
            "ttft_ms_p50": level["ttft_ms"]["p50"], "ttft_ms_p99": level["ttft_ms"]["p99"],
            "itl_ms_p50": level["itl_token_ms"]["p50"], "itl_ms_p99": level["itl_token_ms"]["p99"], "failed": level["requests"]["failed"], "command": " ".join(command)}


def median_of(rows):
    return {k: statistics.median(r[k] for r in rows) for k in rows[0] if k != "command"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(ROOT / "build/release/ekiben"))
    parser.add_argument("--model", default=os.environ.get("EKIBEN_TEST_MODEL"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=float, default=20)
    parser.add_argument("--only", default="")
    parser.add_argument("--output", default=str(ROOT / "bench/results/ablation.json"))
    args = parser.parse_args()
    if not args.model:
        parser.error("--model, or EKIBEN_TEST_MODEL, names the checkpoint (`./dev model` prints the default one's path)")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name, metric, load, base, changed, text in CASES:
            if args.only not in name:
                continue
            rows = {"base": [], "changed": []}
            for round_number in range(args.rounds):
                for side, settings in (("base", base), ("changed", changed)):
                    rows[side].append(run(args.program, args.model, load, settings, args.duration, folder, round_number))
            b, c = median_of(rows["base"]), median_of(rows["changed"])
            results.append({"option": name, "case": text, "metric": metric, "base": b, "changed": c,
                            "ratio": c[metric] / b[metric] if b[metric] else None, "rounds": rows})
            print(f"{name:24} {text}\n    {metric}: {b[metric]:.1f} -> {c[metric]:.1f} (x{c[metric] / b[metric]:.2f});  "
                  f"tokens/s {b['tokens_per_s']:.0f} -> {c['tokens_per_s']:.0f}, TTFT p50 {b['ttft_ms_p50']:.0f} -> "
                  f"{c['ttft_ms_p50']:.0f}, p99 {b['ttft_ms_p99']:.0f} -> {c['ttft_ms_p99']:.0f} ms, "
                  f"ITL p99 {b['itl_ms_p99']:.1f} -> {c['itl_ms_p99']:.1f} ms", flush=True)
    cpu = next((l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    document = {"schema": 1, "machine": {"cpu": cpu, "cores": os.cpu_count()}, "commit": commit,
                "date": time.strftime("%Y-%m-%d"), "command": " ".join(sys.argv), "results": results}
    pathlib.Path(args.output).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
