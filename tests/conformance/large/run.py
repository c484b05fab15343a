#!/usr/bin/env python3
"""Clients too large for every test run, each against a real `ekiben serve`: `./dev conformance [NAME...]`.

  aiperf     NVIDIA's load client over chat, completions and embeddings, with a local tokenizer: no request fails
  lm_eval    loglikelihoods of a tiny local task through us and through Hugging Face's own model in float32: 1e-3 apart at most
  embeddings last and mean pooling beside Hugging Face's own hidden states in float32: a cosine of 0.999 at least
  guidellm   vLLM's load client over chat: no request fails (6 GB of wheels)
  cancels    10,000 cancels at random moments on every surface (test_cancels.py)

Each writes what it saw to tests/conformance/results/NAME.json and fails where it does not hold."""
import argparse
import datetime
import glob
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
RESULTS = HERE.parent / "results"
MODEL = os.environ.get("EKIBEN_TEST_MODEL", "")
LOGLIKELIHOOD_BOUND = 1e-3
COSINE_BOUND = 0.999


def dev(*command):
    return subprocess.run(["./dev", *command], cwd=ROOT, check=True, stdout=subprocess.PIPE,
                          text=True).stdout.strip().split("\n")[-1]


def environment(name):
    """The folder of an environment's programs."""
    return pathlib.Path(dev("python", name, str(HERE / f"requirements-{name}.txt"))).parent


def tokenizer_folder(work):
    folder = work / "tokenizer"
    python = dev("python", "oracle-tokenizer", str(ROOT / "tests" / "oracles" / "tokenizer" / "requirements.txt"))
    subprocess.run([python, HERE / "tokenizer_folder.py", MODEL, folder], check=True)
    return folder


def grpc_options(program):
    text = subprocess.run([program, "serve", "--help"], capture_output=True, text=True).stdout
    return ["--grpc_port", "0"] if "--grpc_port" in text else []


class Server:
    def __init__(self, program, *options):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([program, "serve", MODEL, "--port", str(port), *grpc_options(program), "--served_model_name",
                                         "m", *options], stdout=subprocess.DEVNULL)

    def __enter__(self):
        for _ in range(3000):
            try:
                urllib.request.urlopen(self.url + "/readyz", timeout=5)
                return self
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        raise SystemExit("the server did not come up")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=60)


def shown(command, **kwargs):
    print("+", " ".join(map(str, command)), flush=True)
    return subprocess.run([str(c) for c in command], **kwargs)


def aiperf(program, work):
    """The client works offline with a folder only while Hugging Face's offline switches are unset."""
    env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    tool, tokenizer, found = environment("aiperf") / "aiperf", tokenizer_folder(work), {}
    kinds = {"chat": ["--streaming", "--output-tokens-mean", "16", "--extra-inputs", "ignore_eos:true"],
             "completions": ["--streaming", "--output-tokens-mean", "16", "--extra-inputs", "ignore_eos:true"],
             "embeddings": []}
    with Server(program) as server:
        for kind, options in kinds.items():
            out = work / f"aiperf-{kind}"
            shown([tool, "profile", "--model", "m", "--url", server.url, "--endpoint-type", kind, "--tokenizer", tokenizer,
                   "--concurrency", "4", "--request-count", "24", "--synthetic-input-tokens-mean", "64", "--ui", "none",
                   "--use-server-token-count", "--artifact-dir", out, *options], env=env, check=True,
                  stdout=subprocess.DEVNULL)
            report = json.loads((out / "profile_export_aiperf.json").read_text())
            value = lambda name: (report.get(name) or {}).get("avg")
            found[kind] = {"requests": value("request_count"), "errors": value("error_request_count") or 0,
                           "output_tokens_mean": value("output_sequence_length"),
                           "ttft_ms_mean": value("time_to_first_token"), "itl_ms_mean": value("inter_token_latency")}
            found["version"] = report["aiperf_version"]
    holds = all(found[k]["requests"] == 24 and not found[k]["errors"] for k in kinds)
    return holds, found


def likelihoods(folder, task):
    """By document and choice: (log-likelihood, was it the greedy continuation)."""
    path, = glob.glob(f"{folder}/*/samples_{task}_*.jsonl")
    found = {}
    for line in open(path):
        sample = json.loads(line)
        for i, answer in enumerate(sample["resps"]):
            answer = answer[0] if isinstance(answer[0], list) else answer
            found[sample["doc_id"], i] = (float(answer[0]), str(answer[1]) if len(answer) > 1 else None)
    return found


def lm_eval(program, work):
    tool, tokenizer = environment("lm-eval") / "lm-eval", tokenizer_folder(work)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(work / "hf"),
           "TOKENIZERS_PARALLELISM": "false"}
    tasks = ["--tasks", "stations,stories", "--include_path", ".", "--log_samples", "--batch_size", "4"]
    with Server(program, "--dtype", "f32") as server:
        shown([tool, "run", "--model", "local-completions", "--model_args",
               f"model=m,base_url={server.url}/v1/completions,tokenizer={tokenizer},tokenizer_backend=huggingface,"
               "num_concurrent=4,max_length=2048", *tasks, "--output_path", work / "ours"], cwd=HERE / "tasks", env=env,
              check=True)
    model = pathlib.Path(MODEL)
    shown([tool, "run", "--model", "hf", "--model_args",
           f"pretrained={model.parent},gguf_file={model.name},tokenizer={tokenizer},dtype=float32,max_length=2048", *tasks,
           "--output_path", work / "hugging_face", "--device", "cpu"], cwd=HERE / "tasks", env=env, check=True)
    found, holds = {"version": dev_version(tool, "lm_eval")}, True
    for task in ("stations", "stories"):
        ours, theirs = likelihoods(work / "ours", task), likelihoods(work / "hugging_face", task)
        far = max(abs(ours[k][0] - theirs[k][0]) for k in theirs)
        other = sum(ours[k][1] != theirs[k][1] for k in theirs)
        found[task] = {"loglikelihoods": len(theirs), "max_difference": far, "greedy_flags_that_differ": other,
                       "lowest": min(v for v, _ in theirs.values())}
        holds = holds and set(ours) == set(theirs) and far <= LOGLIKELIHOOD_BOUND and other == 0
    found["bound"] = LOGLIKELIHOOD_BOUND
    return holds, found


def embeddings(program, work):
    python, tokenizer = environment("lm-eval") / "python", tokenizer_folder(work)
    story = "The last train left the station before the snow began to fall, and nobody was on it. "
    texts = ["a", "The train", "Bahnhöfe, 駅弁 and 🚆", story, story * 12]
    states = shown([python, HERE / "hidden_states.py", MODEL, tokenizer], input=json.dumps(texts), text=True, check=True,
                   stdout=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    theirs, found = json.loads(states.stdout), {"version": dev_version(python, "transformers"), "texts": len(texts)}
    with Server(program, "--dtype", "f32") as server:
        for pooling in ("last", "mean"):
            body = {"model": "m", "input": [t["tokens"] for t in theirs], "pooling": pooling}
            request = urllib.request.Request(server.url + "/v1/embeddings", json.dumps(body).encode(),
                                             {"content-type": "application/json"})
            ours = json.loads(urllib.request.urlopen(request, timeout=600).read())["data"]
            found[f"lowest_cosine_{pooling}"] = min(sum(a * b for a, b in zip(o["embedding"], t[pooling], strict=True))
                                                    for o, t in zip(ours, theirs, strict=True))
    found["bound"] = COSINE_BOUND
    return min(found["lowest_cosine_last"], found["lowest_cosine_mean"]) >= COSINE_BOUND, found


def dev_version(tool, package):
    code = f"import importlib.metadata as m; print(m.version('{package}'))"
    return subprocess.run([tool.parent / "python", "-c", code], capture_output=True, text=True).stdout.strip()


def guidellm(program, work):
    tool, tokenizer = environment("guidellm") / "guidellm", tokenizer_folder(work)
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    out = work / "guidellm.json"
    with Server(program) as server:
        shown([tool, "run", "--backend", f"kind=openai_http,target={server.url},model=m", "--profile",
               "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=10", "--tokenizer",
               f"kind=huggingface_auto,model={tokenizer}", "--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=8",
               "--output", f"kind=json,path={out}"], env=env, check=True)
    totals = json.loads(out.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    return totals["successful"] == 10 and totals["errored"] == 0, {"version": dev_version(tool, "guidellm"), **totals}


def cancels(program, work):
    python = dev("python", "conformance", str(HERE.parent / "requirements.txt"))
    with Server(program) as server:  # conftest.py waits for one; the cancels start their own
        env = {**os.environ, "EKIBEN_CANCELS": "10000", "EKIBEN_PROGRAM": program,
               "EKIBEN_URL": server.url}
        run = shown([python, "-m", "pytest", "-q", "-s", "--no-header", "-p", "no:cacheprovider",
                     HERE.parent / "test_cancels.py"], env=env, stdout=subprocess.PIPE, text=True)
    print(run.stdout[-4000:])
    line = re.search(r"^(\d+ cancels in .*)$", run.stdout, re.M)
    return run.returncode == 0 and line is not None, {"saw": line.group(1) if line else None, "pytest": run.stdout.strip().split("\n")[-1]}


RUNS = {"aiperf": aiperf, "lm_eval": lm_eval, "embeddings": embeddings, "guidellm": guidellm, "cancels": cancels}


def machine():
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {"cpu": cpu.group(1) if cpu else "", "cores": os.cpu_count(), "load_average": os.getloadavg()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}; all but guidellm when none is named")
    parser.add_argument("--program", default=str(ROOT / "build" / "release" / "ekiben"))
    args = parser.parse_args()
    if unknown := set(args.names) - set(RUNS):
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(RUNS)}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    RESULTS.mkdir(exist_ok=True)
    passed = failed = 0
    for name in args.names or ["aiperf", "lm_eval", "embeddings", "cancels"]:
        work = pathlib.Path(tempfile.mkdtemp(prefix=f"ekiben-{name}-"))
        started, begin = datetime.datetime.now(datetime.timezone.utc), time.monotonic()
        try:
            holds, found = RUNS[name](args.program, work)
        except subprocess.CalledProcessError as error:
            holds, found = False, {"error": str(error)}
        shutil.rmtree(work, ignore_errors=True)
        report = {"started_utc": started.isoformat(timespec="seconds"), "command": f"./dev conformance {name}",
                  "commit": commit, "machine": machine(), "seconds": round(time.monotonic() - begin, 1), "holds": holds,
                  "found": found}
        (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        print(f"{'ok' if holds else 'FAIL':5} {name}: {json.dumps(found)}", flush=True)
        passed, failed = passed + holds, failed + (not holds)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
