"""Every command as a user types it: what works, and what a wrong input is told. Needs EKIBEN_PROGRAM and EKIBEN_TEST_MODEL."""
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest

PROGRAM = os.environ["EKIBEN_PROGRAM"]
MODEL = os.environ["EKIBEN_TEST_MODEL"]
EMULATED = pathlib.Path(PROGRAM).parent / "tests" / "cuda_emulation" / "ekiben_emulated"  # the same on an emulated GPU
GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"


def ekiben(*args, stdin="", env=None, timeout=300, program=PROGRAM):
    return subprocess.run([program, *map(str, args)], input=stdin, capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, **(env or {})})


class CommandLine(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.engine = cls.folder / "engine"
        run = ekiben("build", MODEL, "-o", cls.engine, "--max_batch_size", 16, "--max_seq_len", 1024,
                     "--multiple_profiles", "disable", "--json")
        assert run.returncode == 0, run.stderr
        cls.summary = json.loads(run.stdout)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def assert_refused(self, run, *words):
        self.assertEqual(run.returncode, 2, run.stderr)
        lines = [l for l in run.stderr.strip().split("\n") if l]
        self.assertEqual(len(lines), 1, run.stderr)
        for word in words:
            self.assertIn(word, lines[0])

    def test_help_of_every_command(self):
        for command in ("build", "serve", "chat", "generate", "bench", "models", "inspect", "check", "kernels", "synth"):
            run = ekiben(command, "--help")
            self.assertEqual(run.returncode, 0, run.stderr)
            self.assertIn(command, run.stdout)

    def test_build_says_what_it_packed(self):
        self.assertEqual(self.summary["build_config"]["max_batch_size"], 16)
        self.assertGreater(self.summary["bytes"], 60e6)

    def test_inspect_checkpoint_and_engine(self):
        checkpoint = json.loads(ekiben("inspect", MODEL, "--json").stdout)
        self.assertIn("gguf", checkpoint["format"].lower())
        self.assertEqual(len(checkpoint["tensors"]), 272)
        engine = json.loads(ekiben("inspect", self.engine, "--json").stdout)
        layers = 30 if "EKIBEN_TIME_SCALE" not in os.environ else 2  # of the file that a sanitizer's run makes
        self.assertEqual(engine["pretrained_config"]["num_hidden_layers"], layers)

    def test_generate_keeps_order_and_resumes(self):
        prompts, out = self.folder / "prompts.jsonl", self.folder / "out.jsonl"
        lines = [json.dumps({"prompt": f"Count: {i}, {i + 1},", "max_tokens": 4}) for i in range(12)]
        lines[5] = json.dumps({"prompt": "x", "max_tokens": 0})
        prompts.write_text("\n".join(lines) + "\n")
        run = ekiben("generate", self.engine, "-i", prompts, "-o", out)
        self.assertEqual(run.returncode, 0, run.stderr)
        first = out.read_text()
        rows = [json.loads(l) for l in first.strip().split("\n")]
        self.assertEqual([r["index"] for r in rows], list(range(12)))
        self.assertIn("max_tokens", rows[5]["error"]["message"])
        self.assertTrue(all(r["completion_tokens"] <= 4 for i, r in enumerate(rows) if i != 5))
        out.write_text("".join(l + "\n" for l in first.split("\n")[:7]) + '{"index": 7, "te')  # an interrupted run
        run = ekiben("generate", self.engine, "-i", prompts, "-o", out)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(out.read_text(), first)

    def test_chat_answers_and_ends(self):
        run = ekiben("chat", self.engine, "--max_tokens", 8, "--temperature", 0, stdin="What is 2+2?\n\n")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertTrue(run.stdout.strip())
        self.assertIn("tokens/s", run.stderr)

    def test_models_store(self):
        env = {"EKIBEN_HOME": str(self.folder / "store")}
        run = ekiben("models", "import", MODEL, "--tag", "smollm2:v1", env=env)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(json.loads(ekiben("models", "list", "--json", env=env).stdout)[0]["tag"], "smollm2:v1")
        self.assertIn("smollm2:v1", ekiben("models", "get", "smollm2", env=env).stdout)
        run = ekiben("inspect", "smollm2", "--json", env=env)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(ekiben("models", "delete", "smollm2:v1", env=env).returncode, 0)
        self.assert_refused(ekiben("models", "get", "smollm2", env=env), "smollm2", "models list")

    # One line each, with the option, the value, and the limit or what to do; exit code 2 and nothing left behind.
    WRONG_BUILDS = [
        (["--tokens_per_block", 33], ["tokens_per_block", "33", "power of two"]),
        (["--max_beam_width", 4], ["max_beam_width", "4", "limit is 1"]),
        (["--dtype", "fp3"], ["dtype", "fp3", "int8"]),
        (["--max_seq_len", 9000], ["max_seq_len", "9000", "8192"]),
        (["--gemm_plugin", "cublas"], ["gemm_plugin", "cublas", "disable"]),
        (["--device", "cuda", "--gemm_plugin", "fp8"], ["gemm_plugin", "fp8", "--dtype fp8"]),
        (["--device", "cuda", "--gemm_plugin", "float16"], ["gemm_plugin", "float16", "auto, disable, bfloat16, fp8"]),
        (["--kv_cache_type", "continuous"], ["kv_cache_type", "continuous", "paged"]),
        (["--max_num_tokens", 64, "--max_batch_size", 128], ["max_num_tokens", "64", "max_batch_size of 128"]),
        (["--device", "tpu"], ["--device", "tpu"]),
        (["--device", "cuda", "--dtype", "int4"], ["dtype", "int4", "auto, bf16"]),
        (["--opt_num_tokens", 64], ["opt_num_tokens", "64", "--multiple_profiles disable"]),
        (["--multiple_profiles", "perhaps"], ["--multiple_profiles", "perhaps"]),
        (["--no_such_option", 1], ["--no_such_option", "--help"]),
        (["--max_batch_size", "many"], ["--max_batch_size", "many", "--help"]),
    ]
    WRONG_RUNS = [
        (["--max_batch_size", 17], ["max_batch_size", "17", "16", "ekiben build"]),
        (["--max_seq_len", 2000], ["max_seq_len", "2000", "1024", "ekiben build"]),
        (["--dtype", "f32"], ["dtype", "f32", "auto", "ekiben build"]),
        (["--device", "gpu"], ["--device", "gpu", "cpu,cuda,fake"]),
        (["--device", "cuda"], ["device", "--device cpu"]),  # no GPU here; with one, an engine built for the CPU
        (["--synth", "llama-3-8b"], ["synth", "llama-3-8b", "leave one out"]),
        (["--port", 99999], ["--port", "99999", "65535"]),
        (["--port", "http"], ["--port", "http"]),
        (["--host", "300.1.1.1"], ["host", "300.1.1.1"]),
        (["--threads", -3], ["--threads", "-3", "1024"]),
        (["--batching_strategy", "V2"], ["--batching_strategy", "V2", "V1, inflight_fused_batching"]),
        (["--batch_scheduler_policy", "x"], ["--batch_scheduler_policy", "'x'", "guaranteed_no_evict"]),
        (["--kv_cache_dtype", "fp8"], ["kv_cache_dtype", "fp8", "bf16"]),
        (["--kv_cache_free_gpu_mem_fraction", 2], ["kv_cache_free_gpu_mem_fraction", "2", "0.95"]),
        (["--max_tokens_in_paged_kv_cache", 100], ["max_tokens_in_paged_kv_cache", "1024", "--max_seq_len"]),
        (["--max_attention_window_size", -5], ["--max_attention_window_size", "-5"]),
        (["--max_queue_size", 0], ["max_queue_size", "0"]),
        (["--max_queue_tokens", 0], ["max_queue_tokens", "0"]),
        (["--preprocessing_instance_count", 0], ["preprocessing_instance_count", "0", "64"]),
        (["--traffic.timeout", -1], ["--traffic.timeout", "-1"]),
        (["--traffic.max_concurrency", -1], ["--traffic.max_concurrency", "-1"]),
        (["--max_connections", 0], ["--max_connections", "0"]),
        (["--drain_timeout", -1], ["--drain_timeout", "-1"]),
    ]

    def test_wrong_options(self):
        out = self.folder / "never"
        for options, words in self.WRONG_BUILDS:
            with self.subTest(options=options):
                self.assert_refused(ekiben("build", MODEL, "-o", out, *options, timeout=60), *words)
        for options, words in self.WRONG_RUNS:
            with self.subTest(options=options):
                self.assert_refused(ekiben("serve", self.engine, *options, timeout=60), *words)
        self.assertFalse(out.exists())

    def test_wrong_commands_and_places(self):
        notes = self.folder / "notes"
        notes.mkdir()
        (notes / "mine.txt").write_text("keep")
        for args, words in [
            (["frobnicate"], ["frobnicate", "serve"]),
            ([], ["--help"]),
            (["build", MODEL], ["--output", "required"]),
            (["build", MODEL, "-o", notes], ["notes", "not an engine"]),
            (["build", MODEL, "-o", "/proc/nowhere/x"], ["/proc/nowhere/x"]),
            (["chat", "nosuchtag:latest"], ["nosuchtag", "models list"]),
            (["generate", self.engine, "-i", self.folder / "none.jsonl", "-o", self.folder / "o.jsonl"], ["none.jsonl"]),
            (["serve"], ["MODEL is required", "--synth"]),
            (["serve", "--synth", "llama-3-8b"], ["synth", "--device cuda", "ekiben synth llama-3-8b -o"]),
            (["serve", "--synth", "llama-9", "--device", "fake"], ["synth", "llama-9", "llama-3-8b"]),
            (["synth", "llama-9", "-o", notes], ["synth", "llama-9", "llama-3-8b"]),
            (["synth", "smollm2-135m", "-o", notes], ["notes", "exists"]),
            (["bench", "--url", "ftp://x"], ["ftp://x", "http://"]),
            (["bench", "--users", "0"], ["users", "0", "100000"]),
            (["bench", "--api", "soap"], ["--api", "soap", "chat, completions, generate"]),
            (["check", self.engine, "--against", "/nowhere"], ["/nowhere"]),
            (["check", self.engine, "--against", "/nowhere", "--device", "cuda"], ["--device"]),
            (["kernels"], ["MODEL"]),
        ]:
            with self.subTest(args=args):
                self.assert_refused(ekiben(*args, timeout=60), *words)
        self.assertEqual((notes / "mine.txt").read_text(), "keep")

    def test_check_needs_no_tokenizer_and_its_exit_code_says_whether_the_logits_agree(self):
        env = {"EKIBEN_CACHE": str(self.folder / "cache")}
        model = GOLDEN / "tiny_llama3"  # has none
        self.assert_refused(ekiben("serve", model, env=env), "tokenizer")
        run = ekiben("check", model, "--against", model, "--dtype", "f32", env=env)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertRegex(run.stdout, r"72 of 72(.|\n)*PASS")
        run = ekiben("check", model, "--against", model, "--dtype", "bf16", "--max_kl", "1e-9", "--json", env=env)
        self.assertEqual(run.returncode, 1, run.stderr)
        self.assertFalse(json.loads(run.stdout)["ok"])

    @unittest.skipUnless(EMULATED.exists(), "not built with the emulated device")
    def test_check_and_kernels_on_an_emulated_gpu(self):
        env = {"EKIBEN_CACHE": str(self.folder / "cache")}
        model = GOLDEN / "tiny_llama3"
        for dtype, code in (("bf16", 0), ("fp8", 1)):  # two random layers are further apart in e4m3 than 2e-2
            run = ekiben("check", model, "--against", model, "--device", "cuda", "--dtype", dtype, "--json", env=env,
                         program=EMULATED)
            self.assertEqual(run.returncode, code, run.stderr)
            self.assertLess(json.loads(run.stdout)["mean_kl"], 5e-2)
        run = ekiben("check", model, "--against", "cpu", "--device", "cuda", env=env, program=EMULATED)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertRegex(run.stdout, r"against cpu: 3 sequences of random tokens\npositions 384, (.|\n)*PASS")
        engine = self.folder / "no_checkpoint"
        ekiben("build", MODEL, "-o", engine, "--device", "cuda", "--dtype", "bf16")
        self.assert_refused(ekiben("check", engine, "--against", "cpu", "--device", "cuda", env=env, program=EMULATED),
                            "against cpu needs the checkpoint")
        run = ekiben("kernels", model, "--device", "cuda", "--tokens", 2, "--kv_tokens", 40, "--max_batch_size", 2, "--json",
                     env=env, program=EMULATED)
        self.assertEqual(run.returncode, 0, run.stderr)
        result = json.loads(run.stdout)
        self.assertEqual(set(result["peaks"]), {"bf16_operations_per_s", "fp8_operations_per_s", "read_bytes_per_s"})
        rows = {row["op"]: row for row in result["ops"]}
        self.assertEqual(rows["gate_up"]["bytes"], 2 * (384 * 128 + 2 * 128 + 2 * 384))
        self.assertRegex(rows["gate_up"]["kernel"], "^(own|cuBLASLt [0-9]+)$")  # what was faster when it was built

    def test_an_engine_for_another_device(self):
        engine = self.folder / "for_cuda"
        run = ekiben("build", MODEL, "-o", engine, "--device", "cuda", "--json")
        self.assertEqual(run.returncode, 0, run.stderr)
        built = json.loads(run.stdout)["build_config"]
        self.assertEqual((built["dtype"], built["tokens_per_block"], built["max_batch_size"]), ("bf16", 64, 1024))
        self.assert_refused(ekiben("serve", engine, timeout=60), "device", "built for cuda", "--device cuda",
                            f"ekiben build CHECKPOINT -o {engine} --device cpu")

    def test_lower_limits_need_no_build(self):
        prompts, out = self.folder / "lp.jsonl", self.folder / "lo.jsonl"
        prompts.write_text('{"prompt": "one two three four five six seven eight nine ten", "max_tokens": 2}\n')
        run = ekiben("generate", self.engine, "-i", prompts, "-o", out, "--max_batch_size", 2, "--max_num_tokens", 4,
                     "--max_seq_len", 64)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(json.loads(out.read_text())["completion_tokens"], 2)
        out.unlink()
        run = ekiben("generate", self.engine, "-i", prompts, "-o", out, "--max_input_len", 5)
        self.assertIn("max_input_len of 5", json.loads(out.read_text())["error"]["message"])

    def test_missing_and_damaged_inputs(self):
        self.assert_refused(ekiben("serve", self.folder / "nothing"), "nothing: no such file or folder")
        bad = self.folder / "bad.gguf"
        with open(MODEL, "rb") as f:
            bad.write_bytes(f.read(5_000_000))
        self.assert_refused(ekiben("build", bad, "-o", self.folder / "x"), "bad.gguf")
        bad.write_bytes(b"GGML" + b"\0" * 100)
        self.assert_refused(ekiben("inspect", bad), "bad.gguf")
        other = self.folder / "other"
        other.mkdir()
        (other / "config.json").write_text('{"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}')
        self.assert_refused(ekiben("build", other, "-o", self.folder / "x"), "T5ForConditionalGeneration", "LlamaForCausalLM")

    def test_damaged_engine(self):
        for name, offset in (("rank0.engine", 40_000_000), ("rank0.engine", 100), ("config.json", 20),
                             ("tokenizer.bin", 1000)):
            copy = self.folder / "damaged"
            shutil.copytree(self.engine, copy)
            with open(copy / name, "r+b") as f:
                f.seek(offset)
                byte = f.read(1)
                f.seek(offset)
                f.write(bytes([byte[0] ^ 0xFF]))
            run = ekiben("serve", copy, "--port", 1)
            self.assertEqual(run.returncode, 2, f"{name}: {run.stderr}")
            shutil.rmtree(copy)
        copy = self.folder / "cut"
        shutil.copytree(self.engine, copy)
        os.truncate(copy / "rank0.engine", 1_000_000)
        self.assert_refused(ekiben("serve", copy), "rank0.engine", "ekiben build")
        shutil.rmtree(copy)

    def test_port_in_use(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            run = ekiben("serve", self.engine, "--host", "127.0.0.1", "--port", s.getsockname()[1])
            self.assertNotEqual(run.returncode, 0)
            self.assertIn(str(s.getsockname()[1]), run.stderr.strip().split("\n")[-1])

    def test_engine_cache_is_built_once(self):
        env = {"EKIBEN_CACHE": str(self.folder / "cache_of_one")}
        prompts, out = self.folder / "p.jsonl", self.folder / "o.jsonl"
        prompts.write_text('{"prompt": "Hi", "max_tokens": 1}\n')
        built = False
        for limits in ([], [], ["--max_batch_size", 8, "--max_seq_len", 256], ["--max_num_tokens", 1024]):
            out.unlink(missing_ok=True)
            run = ekiben("generate", MODEL, "-i", prompts, "-o", out, *limits, env=env)
            self.assertEqual(run.returncode, 0, run.stderr)
            self.assertEqual("build:" in run.stderr, limits == [] and not built)
            built = True
        self.assertEqual(len([p for p in (self.folder / "cache_of_one" / "engines").iterdir() if p.is_dir()]), 1)

