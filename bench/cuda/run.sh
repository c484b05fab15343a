#!/usr/bin/env bash
# Builds the CUDA bench programs named (default: all) beside each other, then runs each: run.sh OUT_DIR [program...]
# Needs nvcc 13 and one sm_90 GPU. A program that fails to build or check does not stop the others; the exit code says so.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: run.sh OUT_DIR [program...]}
shift
programs=("$@")
[ ${#programs[@]} -gt 0 ] || programs=(gemm_cublaslt gemm_skinny attention_decode decode_step)
build=${BUILD_DIR:-/tmp/ekiben-cuda-bench}
mkdir -p "$build" "$out"
pids=()
for p in "${programs[@]}"; do
  # nvcc 13.0's front end aborts in C++20 mode on some containers of move-only types; C++17 is enough for these programs.
  (nvcc -std=c++17 -O3 -lineinfo -gencode=arch=compute_90a,code=sm_90a -Xptxas -v "$here/$p.cu" -o "$build/$p" -lcublasLt \
    >"$out/$p.build" 2>&1) &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
status=0
for p in "${programs[@]}"; do
  if [ ! -x "$build/$p" ]; then
    echo "== $p: build failed"; grep -E 'error' "$out/$p.build" | head -20; status=1; continue
  fi
  echo "== $p (spilling kernels: $(grep -cE '[1-9][0-9]* bytes spill stores' "$out/$p.build"))"
  grep -B1 -E '[1-9][0-9]* bytes spill stores' "$out/$p.build" | grep -v '^--' | sed 's/^/   /'
  rm "$out/$p.build"
  timeout "${LIMIT_S:-230}" "$build/$p" "$out/cuda_$p.json" 2>&1 | tee "$out/$p.txt" || status=1
done
exit $status
