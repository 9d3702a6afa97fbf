"""Training scripts in processes of their own, and what they logged."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(recipe: Path, *arguments: str, processes: int = 1, script: str = "vq_train.py") -> subprocess.Popen:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(ROOT / script), "--recipe", str(recipe), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, timeout: float = 240) -> str:
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err[-3000:]
    return out


def logged(folder: Path, name: str = "loss/total") -> dict[int, float]:
    """step -> value of the log."""
    text = (folder / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # the last may be half written
    return {line["step"]: line[name] for line in lines if name in line}
