#!/usr/bin/env bash
# Everything that needs a GPU: tests marked `gpu`, then speed beside the card's stated peaks. Writes
# results/gpu_check/report.md and report.json. Without a GPU it runs tiny models on the CPU and says what it skipped.
#   scripts/gpu_check.sh [--only tests|speed|benchmarks] [--out FOLDER]
# VENV names the environment (.venv here by default), which scripts/test.sh makes; PYTHON another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-${VENV:-.venv}/bin/python}
"$python" -c 'import pytest, pytest_timeout, vfmtok' 2> /dev/null || { echo "scripts/gpu_check.sh: error: run scripts/test.sh --version first, which installs what this needs" >&2; exit 2; }
exec "$python" benchmarks/gpu_check.py "$@"
