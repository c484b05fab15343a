"""Each rule of tools/tidy finds what it is for, and passes what it should pass."""
import importlib.machinery
import importlib.util
import pathlib
import tempfile
import unittest

loader = importlib.machinery.SourceFileLoader("tidy", str(pathlib.Path(__file__).with_name("tidy")))
tidy = importlib.util.module_from_spec(importlib.util.spec_from_loader("tidy", loader))
loader.exec_module(tidy)


class Tree:
    def __init__(self, files):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def problems(check, files):
    tree = Tree(files)
    with tree.folder:
        return list(check(tree.root))


class TidyTest(unittest.TestCase):
    def test_layers(self):
        self.assertEqual(problems(tidy.check_layers, {"src/serve/a.cc": '#include "executor/executor.h"\n'}), [])
        self.assertIn("not below it", problems(tidy.check_layers, {"src/cache/a.cc": '#include "schedule/x.h"\n'})[0])
        self.assertIn("not below it", problems(tidy.check_layers, {"src/base/a.h": '#include "cli/x.h"\n'})[0])
        self.assertIn("not a folder", problems(tidy.check_layers, {"src/base/a.h": '#include "nowhere/x.h"\n'})[0])

    def test_cuda(self):
        self.assertEqual(len(problems(tidy.check_cuda_includes, {"src/ops/a.h": "#include <cuda_runtime.h>\n"})), 1)
        self.assertEqual(problems(tidy.check_cuda_includes, {"src/ops/a.cu": "#include <cuda_runtime.h>\n"}), [])

    def test_banned(self):
        bad = "auto t = std::chrono::steady_clock::now();\n"
        self.assertIn("Clock", problems(tidy.check_banned, {"src/serve/a.cc": bad})[0])
        self.assertEqual(problems(tidy.check_banned, {"src/base/clock.h": bad}), [])
        self.assertEqual(problems(tidy.check_banned, {"src/serve/a.cc": "// assert(x) is banned\n"}), [])
        self.assertEqual(problems(tidy.check_banned, {"src/serve/a.cc": 'f("throw me");\n'}), [])
        self.assertEqual(problems(tidy.check_banned, {"src/serve/a.cc": "static_assert(true);\n"}), [])
        for line in ("assert(x);", "throw Bad();", "std::regex r;", "x = new Thing();", "// TODO fix", "n = std::atoi(s);"):
            self.assertEqual(len(problems(tidy.check_banned, {"src/serve/a.cc": line + "\n"})), 1, line)

    def test_guards_and_names(self):
        self.assertEqual(len(problems(tidy.check_headers_guarded, {"src/ops/a.h": "int x;\n"})), 2)
        self.assertEqual(len(problems(tidy.check_names, {"src/ops/string_utils.cc": ""})), 1)
        self.assertEqual(problems(tidy.check_names, {"src/ops/rms_norm.cc": ""}), [])

    def test_length(self):
        self.assertEqual(len(problems(tidy.check_length, {"src/ops/a.cc": "x\n" * 900})), 1)
        self.assertEqual(problems(tidy.check_length, {"src/ops/a.cc": "// Long on purpose: a table\n" + "x\n" * 900}), [])

    def test_cmake_readmes_docs(self):
        files = {"src/ops/a.cc": "", "src/ops/CMakeLists.txt": "SOURCES b.cc", "docs/X.md": "see `src/ops/b.cc`\n"}
        self.assertEqual(len(problems(tidy.check_listed_in_cmake, files)), 1)
        self.assertEqual(len(problems(tidy.check_readmes, files)), 1)
        self.assertEqual(len(problems(tidy.check_docs_name_real_files, files)), 1)


if __name__ == "__main__":
    unittest.main()
