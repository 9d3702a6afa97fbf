#!/usr/bin/env bash
# Install into a virtual environment (made if it is not there) and run everything that guards this repository:
# ruff's lint and format checks, then the tests. Arguments go to pytest:
#   scripts/test.sh                       the whole suite
#   scripts/test.sh -m slow               the tests that need minutes
#   scripts/test.sh tests/tokenizers -x   a part of it
# VENV names the environment (.venv here by default), PYTHON the interpreter that makes it.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

# Without pip an environment was left half made, as Debian does where python3-venv is not installed.
"$venv/bin/python" -m pip --version > /dev/null 2>&1 || "${PYTHON:-python3}" -m venv "$venv"
# Reinstall only when what is to be installed has changed.
stamp=$(cat setup.py pyproject.toml | "$venv/bin/python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$stamp $PWD" ]; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[train,dev]'
    echo "$stamp $PWD" > "$venv/installed"
fi

"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
# Two test files at a time, each on one core: tests of several processes and of scripts wait more than they compute.
export OMP_NUM_THREADS=1
exec "$venv/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 "$@"
