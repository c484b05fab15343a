"""Finds real chat templates: those that the source package of llama-cpp-python carries, and a GGUF file's own. They are
downloaded into a cache and never become part of this repository."""

import pathlib
import struct
import subprocess
import sys
import tarfile
import tempfile

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
INSIDE = "/vendor/llama.cpp/models/templates/"


def fetched(cache):
    """{name: source} of the package's templates; downloads them once (75 MB)."""
    folder = pathlib.Path(cache) / f"{PACKAGE}-{VERSION}"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as download:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation"]
            command += ["--no-binary", PACKAGE, f"{PACKAGE}=={VERSION}", "-d", download]
            subprocess.run(command, check=True)
            with tarfile.open(next(pathlib.Path(download).iterdir())) as archive:
                for member in archive:
                    if INSIDE in "/" + member.name and member.name.endswith(".jinja"):
                        (folder / pathlib.Path(member.name).name).write_bytes(archive.extractfile(member).read())
        (folder / "complete").touch()
    return from_folder(folder)


def from_folder(folder):
    paths = sorted(pathlib.Path(folder).glob("*.jinja"))
    return {path.stem: path.read_bytes().decode() for path in paths}


def from_gguf(path):
    """The template in a GGUF file's metadata."""
    with open(path, "rb") as file:

        def number(code):
            return struct.unpack("<" + code, file.read(struct.calcsize(code)))[0]

        def text():
            return file.read(number("Q")).decode("utf-8", "replace")

        def value(kind):
            codes = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
            if kind == 8:
                return text()
            if kind == 9:
                inner, count = number("I"), number("Q")
                return [value(inner) for _ in range(count)]
            return number(codes[kind])

        if file.read(4) != b"GGUF":
            raise ValueError(f"{path}: not a GGUF file")
        number("I"), number("Q")
        for _ in range(number("Q")):
            key, kind = text(), number("I")
            held = value(kind)
            if key == "tokenizer.chat_template":
                return held
    raise ValueError(f"{path}: no tokenizer.chat_template")
