"""A study that is killed (kill -9) in any of its stages, and started again, ends in the table of one that was not."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from vfmtok.files import read_json

# Stage -> what lies in its folder when a part of its work is done. Without such a thing it begins from the beginning,
# and is killed when it has begun.
HALF_DONE = {
    "tokenizer": "out/checkpoints/step_*",
    "reconstruction": "log.txt",
    "codes": "out/progress.bin",
    "generator": "out/checkpoints/step_*",
    "agreement": "log.txt",
    "generation": "out/*/parts/*.npz",
    "images": "claim.json",
}


def wait_until(happened: Callable[[], object], process: subprocess.Popen) -> None:
    begun = time.monotonic()
    while not happened():
        assert process.poll() is None and time.monotonic() - begun < 300, process.log.read_text()
        time.sleep(0.01)


def kill(process: subprocess.Popen, folder: Path) -> None:
    """A study and the command of the step at ``folder``, which gets no time to save."""
    child = json.loads((folder / "claim.json").read_text()).get("child", [None])[0]
    process.kill()
    if child is not None:
        os.kill(child, signal.SIGKILL)
        while os.path.exists(f"/proc/{child}"):
            time.sleep(0.01)
    process.wait()


@pytest.mark.slow
def test_kill_9_in_every_stage_and_the_rerun_has_the_same_table(study, vfmtok_study, start, tmp_path):
    training = [*yaml.safe_load(study().read_text())["tokenizer_set"], "optimizer.steps=12"]
    file = study(
        rows=[{"name": "base"}],
        tokenizer_set=training,
        generator_set=training,
        codes="--views flip --num-workers 0 --batch-size 1",
        agreement="--per-class 2 --cfg-scales 1 --num-workers 0",
        generation="--num-fid-samples 12 --per-proc-batch-size 1 --image-size-eval 32 --no-fid --cfg-scale 1",
        columns=[
            {"name": "PSNR", "of": "reconstruction"},
            {"name": "nats", "of": "generator", "number": "validation/loss", "better": "lower"},
            {"name": "agreement", "of": "agreement", "number": "agreement, no CFG"},
        ],
    )
    assert vfmtok_study(file, out="whole")[0] == 0
    assert vfmtok_study(file, "--dry-run")[0] == 0  # measures the trainings, so that what starts first is a step
    for stage, half_done in HALF_DONE.items():
        process = start(file)
        wait_until(lambda: list((tmp_path / "out/steps").glob(f"{stage}-*/{half_done}")), process)  # noqa: B023
        (folder,) = (tmp_path / "out/steps").glob(f"{stage}-*")
        kill(process, folder)
        assert not (read_json(folder / "step.json") or {}).get("done"), f"{stage}: killed too late"
    code, _, errors = vfmtok_study(file)
    assert code == 0, errors
    tables = [json.loads((tmp_path / out / "table.json").read_text()) for out in ("whole", "out")]
    assert tables[0]["rows"] == tables[1]["rows"]
    assert all(cell["mean"] is not None for cell in tables[1]["rows"]["base"]["numbers"].values())


@pytest.mark.slow
def test_kill_9_of_the_study_leaves_no_orphan_and_the_rerun_has_the_same_table(study, vfmtok_study, start, tmp_path):
    file = study(generator=None, generation=None, tokenizer_set=["run.global_batch=4", "run.precision=none",
                 "run.log_every=1", "run.save_every=2", "run.tensorboard=false", "optimizer.steps=40"])  # fmt: skip
    assert vfmtok_study(file, out="whole")[0] == 0
    for _ in range(2):
        process = start(file)
        waited = time.monotonic()
        while not list((tmp_path / "out").glob("steps/tokenizer-*/out/checkpoints/*")):
            assert process.poll() is None and time.monotonic() - waited < 300, process.log.read_text()
            time.sleep(0.1)
        (claim,) = (tmp_path / "out").rglob("claim.json")
        child = json.loads(claim.read_text())["child"][0]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        while os.path.exists(f"/proc/{child}"):  # it saves, and ends
            assert time.monotonic() - waited < 300
            time.sleep(0.1)
        if list((tmp_path / "out").glob("steps/tokenizer-*/out/finished")):
            break
    code, _, errors = vfmtok_study(file)
    assert code == 0, errors
    tables = [json.loads((tmp_path / out / "table.json").read_text()) for out in ("whole", "out")]
    assert tables[0]["rows"] == tables[1]["rows"] and tables[1]["rows"]["base"]["numbers"]["PSNR"]["mean"]
