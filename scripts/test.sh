#!/usr/bin/env bash
# Sets everything up and runs all tests: the C++ ones under the address and
# undefined-behaviour sanitizers and emulated on 64-bit ARM, then the Python
# ones. Arguments go to pytest.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

has_gtest() {
  echo '#include <gtest/gtest.h>' | c++ -E -x c++ - >/dev/null 2>&1
}

# GoogleTest is the one thing that pip does not have.
if ! has_gtest && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  echo "== installing libgtest-dev" >&2
  apt-get update -qq && apt-get install -y -qq libgtest-dev >/dev/null
fi

install_mlx_entropy test

if has_gtest; then
  echo "== C++ tests under sanitizers" >&2
  cmake --preset asan -Wno-dev >build-asan.log 2>&1 &&
    cmake --build --preset asan >>build-asan.log 2>&1 ||
    { tail -n 40 build-asan.log; exit 1; }
  rm -f build-asan.log
  ctest --preset asan
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
