#!/usr/bin/env bash
# Sets everything up and runs all tests: the C++ ones under the address and
# undefined-behaviour sanitizers, compiled by Clang where it is installed, and
# emulated on 64-bit ARM, then the Python ones. Arguments go to pytest.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

has_gtest() {
  echo '#include <gtest/gtest.h>' | c++ -E -x c++ - >/dev/null 2>&1
}

# Builds a CMake preset and runs its tests; shows the build only if it fails.
test_preset() {
  local log=build-$1.log
  cmake --preset "$1" -Wno-dev >"$log" 2>&1 &&
    cmake --build --preset "$1" >>"$log" 2>&1 ||
    { tail -n 40 "$log"; exit 1; }
  rm -f "$log"
  ctest --preset "$1"
}

# GoogleTest is the one thing that pip does not have.
if ! has_gtest && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  echo "== installing libgtest-dev" >&2
  apt-get update -qq && apt-get install -y -qq libgtest-dev >/dev/null
fi

install_mlx_entropy test

if has_gtest; then
  echo "== C++ tests under sanitizers" >&2
  test_preset asan
  if command -v clang++ >/dev/null; then
    echo "== C++ tests compiled by Clang" >&2
    test_preset clang
  fi
elif [ -n "${CI:-}" ]; then
  echo "error: the C++ tests need GoogleTest (Debian: libgtest-dev)" >&2
  exit 1
else
  echo "WARNING: C++ tests skipped: install GoogleTest" \
    "(Debian: libgtest-dev) to run them" >&2
fi

# 77: the tools for it are missing, as it says itself.
./scripts/test_neon.sh || [ $? = 77 ]

echo "== Python tests" >&2
exec python -m pytest "$@"
