#!/usr/bin/env bash
# Cross-compiles the C++ core for 64-bit ARM and runs its tests in an emulator.
# Exits with 77 when the tools are missing and cannot be installed.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [ "$(uname -m)" = aarch64 ]; then
  echo "== 64-bit ARM: the other C++ tests run on it here" >&2
  exit 0
fi

missing_packages() {
  command -v aarch64-linux-gnu-g++ >/dev/null || echo g++-aarch64-linux-gnu
  command -v qemu-aarch64 >/dev/null || echo qemu-user
  [ -e /usr/src/googletest/CMakeLists.txt ] || echo googletest
}

mapfile -t missing < <(missing_packages)
if [ ${#missing[@]} -gt 0 ] && command -v apt-get >/dev/null &&
  [ "$(id -u)" = 0 ]; then
  echo "== installing ${missing[*]}" >&2
  { apt-get update -qq &&
    apt-get install -y -qq "${missing[@]}"; } >/dev/null || true
  mapfile -t missing < <(missing_packages)
fi
if [ ${#missing[@]} -gt 0 ]; then
  echo "WARNING: tests on 64-bit ARM skipped: install the packages" \
    "${missing[*]} (Debian and Ubuntu) to run them" >&2
  exit 77
fi
if ! command -v cmake >/dev/null || ! command -v ninja >/dev/null; then
  python -m pip install --quiet --disable-pip-version-check cmake ninja
fi

echo "== C++ tests on 64-bit ARM, emulated" >&2
cmake --preset neon -Wno-dev >build-neon.log 2>&1 &&
  cmake --build --preset neon >>build-neon.log 2>&1 ||
  { tail -n 40 build-neon.log; exit 1; }
rm -f build-neon.log
ctest --preset neon -j "$(nproc)"
