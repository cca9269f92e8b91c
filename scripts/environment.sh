# Sourced by the other scripts: a virtual environment with this checkout
# installed in it. PYTHON chooses the interpreter, VENV the folder.
#
# install_mlx_entropy EXTRA... : installs the package, with these extras.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-python3}"
VENV="${VENV:-.venv}"

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: $PYTHON is not Python 3.11 or later; set PYTHON" >&2
  exit 1
fi
if [ ! -x "$VENV/bin/python" ]; then
  echo "== creating $VENV" >&2
  if ! "$PYTHON" -m venv "$VENV"; then
    rm -rf "$VENV"
    echo "error: cannot create a virtual environment;" \
      "on Debian and Ubuntu install python3-venv" >&2
    exit 1
  fi
fi
# shellcheck disable=SC1091
. "$VENV/bin/activate"

install_mlx_entropy() {
  local extras
  extras=$(IFS=,; echo "$*")
  echo "== installing mlx-entropy${extras:+ with $extras}" >&2
  python -m pip install --quiet --disable-pip-version-check \
    ".${extras:+[$extras]}"
}
