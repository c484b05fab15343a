#!/usr/bin/env bash
# Builds llama.cpp, the peer of bench/peers/compare_llama.py, natively from the sdist of PyPI's llama-cpp-python, and
# makes the BF16 and Q8_0 files of SmolLM2 from the published Q4_1 one. Nothing of it enters this repository.
#
#   bench/peers/build_llama.sh [MODEL.gguf]
#
# PEER_DIR  where everything goes (default /tmp/peers/llama)
# SLOT      a command put in front of every compile step ("nice -n 15"); empty: none
# JOBS      compile jobs (default 1), CHUNK_S: seconds after which the build lets go of SLOT for a moment (default 170)
#
# About 10 CPU minutes and 1.5 GB. Running it again continues where it stopped.
set -euo pipefail
version=0.3.36
peer_dir=${PEER_DIR:-/tmp/peers/llama}
model=${1:-${EKIBEN_MODEL:-}}
slot=${SLOT:-}
mkdir -p "$peer_dir"
cd "$peer_dir"

source_dir=$peer_dir/llama_cpp_python-$version/vendor/llama.cpp
if [ ! -d "$source_dir" ]; then
  if [ ! -f llama_cpp_python-$version.tar.gz ]; then
    [ -d venv ] || python3 -m venv venv
    venv/bin/pip -q download --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version" -d .
  fi
  tar xzf llama_cpp_python-$version.tar.gz
fi

# The web page and curl would want the network; the rest is what a user of this machine gets from a native build.
cmake -S "$source_dir" -B build -G Ninja -Wno-dev -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_CPU_REPACK=ON \
  -DGGML_OPENMP=ON -DGGML_LLAMAFILE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
  -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF >cmake.log 2>&1 \
  || { tail -20 cmake.log; exit 1; }
targets="llama-server llama-bench llama-batched-bench llama-quantize"
while :; do
  rc=0
  $slot timeout "${CHUNK_S:-170}" ninja -C build -j"${JOBS:-1}" $targets >>build.log 2>&1 || rc=$?
  [ "$rc" = 0 ] && break
  [ "$rc" = 124 ] || { tail -30 build.log; exit "$rc"; }
  sleep 2
done
ls -la build/bin/{llama-server,llama-bench,llama-batched-bench,llama-quantize}

[ -n "$model" ] || { echo "no MODEL.gguf given: built the programs only"; exit 0; }
ln -sf "$model" smollm2-q4_1.gguf
for type in BF16 Q8_0; do
  lower=$(echo "$type" | tr 'A-Z' 'a-z')
  [ -s "smollm2-$lower.gguf" ] && continue
  # Q8_0 is made from BF16, so that both lose nothing but their own rounding to the published file.
  from=smollm2-q4_1.gguf
  [ "$type" = Q8_0 ] && from=smollm2-bf16.gguf
  $slot build/bin/llama-quantize --allow-requantize "$from" "smollm2-$lower.part" "$type" 2 >"quantize-$lower.log" 2>&1 \
    || { tail -20 "quantize-$lower.log"; exit 1; }
  mv "smollm2-$lower.part" "smollm2-$lower.gguf"
done
ls -la ./*.gguf
