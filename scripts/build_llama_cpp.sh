#!/usr/bin/env bash
# Builds llama.cpp, the peer of the benchmarks, for this machine's CPU, from the
# sources that the llama-cpp-python package carries.
#
#   scripts/build_llama_cpp.sh [--avx2] [DIR]
#
# DIR defaults to build/llama.cpp. --avx2 leaves out AVX-512, to compare both
# sides on AVX2; its binaries lie beside the others, in DIR/bin-avx2 instead of
# DIR/bin. Run again, it continues where it stopped. Prints the folder with the
# binaries: llama-bench, llama-quantize, llama-perplexity, llama-imatrix,
# test-backend-ops, and ggml-peer, which times one product (tools/ggml_peer.cpp).
#
# PYTHON chooses the interpreter whose pip fetches the sources, JOBS how many
# compilers run at a time.
set -euo pipefail

VERSION=0.3.36
SHA256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
}

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
directory=
flavour=
for argument in "$@"; do
  case "$argument" in
    --avx2) flavour=-avx2 ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "error: unknown option $argument" >&2; exit 2 ;;
    *) directory=$argument ;;
  esac
done
directory=${directory:-$repository/build/llama.cpp}
python=${PYTHON:-python3}
jobs=${JOBS:-$(nproc 2>/dev/null || echo 2)}
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)
source=$directory/source
build=$directory/build$flavour
bin=$directory/bin$flavour

for tool in cmake c++ tar; do
  command -v "$tool" >/dev/null || { echo "error: no $tool here" >&2; exit 1; }
done

# The sources, checked against the hash above.

fetch() {
  local requirement=$directory/requirement.txt
  echo "== fetching llama-cpp-python $VERSION" >&2
  echo "llama-cpp-python==$VERSION --hash=sha256:$SHA256" >"$requirement"
  # Only to be unpacked: no wheel is built, and pip checks the hash.
  "$python" -m pip download --quiet --disable-pip-version-check \
    --no-deps --no-binary llama-cpp-python --require-hashes \
    --dest "$directory" --requirement "$requirement"
  rm -f "$requirement"
}

archive=$directory/llama_cpp_python-$VERSION.tar.gz
if [ "$(cat "$source/.version" 2>/dev/null)" != "$SHA256" ]; then
  if ! echo "$SHA256  $archive" | sha256sum --check --status 2>/dev/null; then
    rm -f "$archive"
    fetch
  fi
  rm -rf "$source"
  mkdir "$source"
  tar -xzf "$archive" -C "$source" --strip-components=3 \
    "llama_cpp_python-$VERSION/vendor/llama.cpp"
  echo "$SHA256" >"$source/.version"
fi

# Instruction sets by what the CPU advertises. Never AMX: machines advertise it
# without enabling it, and llama.cpp's path then traps. GGML_NATIVE is off
# because it would use it.

has() {
  [ -r /proc/cpuinfo ] || return 1
  local flag
  for flag in "$@"; do
    grep -m1 -E '^flags' /proc/cpuinfo | grep -qw "$flag" || return 1
  done
}

on() { if "$@"; then echo ON; else echo OFF; fi; }

options=(
  -DCMAKE_BUILD_TYPE=Release
  -DBUILD_SHARED_LIBS=OFF
  -DGGML_NATIVE=OFF
  -DGGML_CCACHE=OFF
  -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF -DGGML_AMX_BF16=OFF
  -DGGML_BLAS=OFF -DGGML_METAL=OFF
  -DLLAMA_BUILD_TESTS=ON -DLLAMA_BUILD_TOOLS=ON
  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF
  -DLLAMA_BUILD_NUMBER=0 -DLLAMA_BUILD_COMMIT="llama-cpp-python-$VERSION"
  -DLLAMA_OPENSSL=OFF -DLLAMA_CURL=OFF
)
case "$(uname -m)" in
  x86_64 | amd64)
    avx512=OFF vbmi=OFF vnni=OFF bf16=OFF
    if [ -z "$flavour" ]; then
      avx512=$(on has avx512f avx512cd avx512vl avx512dq avx512bw)
    fi
    if [ "$avx512" = ON ]; then
      vbmi=$(on has avx512vbmi)
      vnni=$(on has avx512_vnni)
      bf16=$(on has avx512_bf16)
    fi
    options+=(
      -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_BMI2=ON
      -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON
      -DGGML_AVX512=$avx512 -DGGML_AVX512_VBMI=$vbmi
      -DGGML_AVX512_VNNI=$vnni -DGGML_AVX512_BF16=$bf16
    )
    echo "== AVX2 ON, AVX-512 $avx512, VBMI $vbmi, VNNI $vnni, BF16 $bf16" >&2
    ;;
  *)
    echo "== the compiler's default instruction set" >&2
    ;;
esac
if command -v ninja >/dev/null && [ ! -f "$build/CMakeCache.txt" ]; then
  options+=(-G Ninja)
fi

logged() {
  "$@" >>"$build.log" 2>&1 || {
    tail -n 30 "$build.log" >&2
    echo "error: failed; the log is $build.log" >&2
    exit 1
  }
}

: >"$build.log"
targets=(llama-bench llama-quantize llama-perplexity llama-imatrix
  test-backend-ops)
logged cmake -S "$source" -B "$build" -Wno-dev "${options[@]}"
echo "== building ${targets[*]} (log: $build.log)" >&2
logged cmake --build "$build" --parallel "$jobs" --target "${targets[@]}"

mkdir -p "$bin"
for target in "${targets[@]}"; do
  ln -sf "../build$flavour/bin/$target" "$bin/$target"
done

echo "== building ggml-peer" >&2
logged c++ -std=c++17 -O2 -Wall -I"$source/ggml/include" \
  "$repository/tools/ggml_peer.cpp" -o "$bin/ggml-peer" \
  "$build/ggml/src/libggml.a" "$build/ggml/src/libggml-cpu.a" \
  "$build/ggml/src/libggml-base.a" -fopenmp -pthread -ldl -lm
echo "llama.cpp of llama-cpp-python $VERSION" >"$bin/VERSION"
echo "$bin"
