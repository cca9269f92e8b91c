#!/usr/bin/env bash
# Formatting, style and types, as CI checks them. `--fix` repairs what can be.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_mlx_entropy lint

mapfile -t cpp < <(git ls-files 'src/*.h' 'src/*.cpp' 'tests/*.h' 'tests/*.cpp' \
  'tools/*.cpp')
if [ "${1:-}" = --fix ]; then
  clang-format -i "${cpp[@]}"
  ruff format .
  ruff check --fix .
else
  clang-format --dry-run --Werror "${cpp[@]}"
  ruff format --check .
  ruff check .
fi
mypy
