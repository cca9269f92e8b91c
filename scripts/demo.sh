#!/usr/bin/env bash
# Sets everything up and runs the main job on a real model: fetch, convert
# without loss, verify, generate, and compare with stock MLX. Arguments go to
# `python -m benchmarks demo`.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_mlx_entropy bench
exec python -m benchmarks demo "$@"
