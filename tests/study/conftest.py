"""A study of a tiny tokenizer on a few images, and what runs it as a user does."""

import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vfmtok import cli
from vfmtok.commands.study import PARSERS
from vfmtok.data.dataset_folder import open_splits
from vfmtok.study import running, speed
from vfmtok.study.config import load_study
from vfmtok.study.rows import Changes, resolve
from vfmtok.study.steps import Asked, Data, Plan

ROOT = Path(__file__).parents[2]
TRAINING = ["run.global_batch=4", "run.precision=none", "run.log_every=1", "run.save_every=2", "run.tensorboard=false"]


@pytest.fixture(scope="session")
def images(sample_set, tmp_path_factory) -> Path:
    """24 images of two classes, 8 of them held out, as `vfmtok prepare` leaves them."""
    folder = tmp_path_factory.mktemp("few")
    records = open_splits(sample_set)["val"]
    of_two = [record for record in map(records.__getitem__, range(len(records))) if record.label in (1, 5)]
    for number, record in enumerate(of_two[::3][:24]):
        place = folder / "photos" / ("val" if number % 3 == 0 else "train") / records.class_name(record.label)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(record.image)
    assert cli.main(["prepare", str(folder / "photos"), str(folder / "data")]) == 0
    return folder / "data"


@pytest.fixture
def study(images, tmp_path):
    """``study(key=value, ...)``: the file of a study of two rows with one tokenizer and two generators."""
    tokenizer = yaml.safe_load((ROOT / "configs/tiny.yaml").read_text())
    losses = {"perceptual": "none"}
    (tmp_path / "tokenizer.yaml").write_text(
        yaml.safe_dump(
            {
                "tokenizer": tokenizer,
                "data": {"num_workers": 0},
                "loss": losses,
                "adversarial": {"discriminator": "none"},
                "optimizer": {"lr": 1e-3, "steps": 4, "warmup_steps": 1},
                "run": {"validate_every": 4, "validation_images": 4},
            }
        )
    )
    (tmp_path / "generator.yaml").write_text(
        yaml.safe_dump(
            {
                "generator": {"kind": "gpt", "n_layer": 1, "n_head": 2, "dim": 32},
                "optimizer": {"lr": 1e-3, "steps": 4},
                "pictures": {"every": 0},
                "run": {"validate_every": 4},
            }
        )
    )
    tree = {
        "title": "Tiny",
        "data": str(images),
        "tokenizer": str(tmp_path / "tokenizer.yaml"),
        "tokenizer_set": TRAINING,
        "generator": str(tmp_path / "generator.yaml"),
        "generator_set": TRAINING,
        "codes": "--views flip --num-workers 0",
        "held_out_codes": "--views center --num-workers 0",
        "reconstruction": "--image-size-eval 32 --no-fid --no-lpips --num_workers 0",
        "generation": "--num-fid-samples 4 --image-size-eval 32 --no-fid --cfg-scale 1",
        "columns": [
            {"name": "PSNR", "of": "reconstruction"},
            {"name": "nats", "of": "generator", "number": "validation/loss", "better": "lower"},
            {"name": "rFID", "better": "lower"},
        ],
        "rows": [
            {"name": "base", "published": {"rFID": 0.89}},
            {"name": "wider", "generator_set": ["generator.dim=48"], "published": {"rFID": 1.2}},
        ],
    }

    def write(**changes) -> Path:
        file = tmp_path / "tiny.yaml"
        file.write_text(yaml.safe_dump({**tree, **changes}, sort_keys=False))
        return file

    return write


PROBED = "--image-size-eval 32 --no-fid --no-lpips --linear-probe {data}/train_lmdb"


@pytest.fixture
def plan(study, tmp_path):
    """``plan(data=..., of_tokenizer=[...], **changes of the study)``: its steps, without anything done."""

    def build(data: str = "/data/here", of_tokenizer: tuple = (), of_generator: tuple = (), **changes) -> Plan:
        found = load_study(study(**{"reconstruction": PROBED, "agreement": "--cfg-scales 2", **changes}))
        said = Changes(tuple(of_tokenizer), tuple(of_generator))
        images = Data(Path(data), 1000, 100, ("train", "val"), 2)
        return Plan(found, resolve(found, PARSERS, said), images, tmp_path / "out", Asked("", (), said))

    return build


@pytest.fixture
def vfmtok_study(tmp_path, monkeypatch, capfd):
    """``vfmtok_study(file, ...)``: the command, whose steps run in this process, since starting one takes seconds.

    Returns (exit code, what it printed, the line on stderr). Each step's command is kept in ``vfmtok_study.commands``;
    the first with a word of ``vfmtok_study.interrupted_at`` is as if Ctrl-C ended it, and takes the word away.
    """
    commands = []

    def run_here(command: list[str], log, claimed=None) -> int:
        words = command[1:]
        commands.append(words)
        for word in [word for word in run.interrupted_at if word in words[0] or word in words[2]]:
            run.interrupted_at.remove(word)
            raise KeyboardInterrupt
        with (
            contextlib.redirect_stdout(io.TextIOWrapper(log, write_through=True)) as out,
            contextlib.redirect_stderr(out),
        ):
            try:
                if words[:2] == ["-m", "vfmtok"]:
                    return cli.main(words[2:])
                monkeypatch.setattr(sys, "argv", words)
                runpy.run_path(words[0], run_name="__main__")
            except SystemExit as end:
                return end.code or 0
            finally:
                out.detach()
        return 0

    def run(file: Path, *flags: str, out: str = "out") -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.main(["study", str(file), "--out", str(tmp_path / out), *flags])
        said = capfd.readouterr()
        return code, said.out, said.err

    monkeypatch.setattr(running, "run_process", run_here)
    monkeypatch.setattr(speed, "run_process", run_here)
    run.commands, run.interrupted_at = commands, []
    return run


@pytest.fixture
def start(tmp_path):
    """``start(file, ...)``: `vfmtok study` as a process of its own, with its output in files; all end with the test."""
    started = []

    def run(file: Path, *flags: str, out: str = "out") -> subprocess.Popen:
        command = [sys.executable, "-m", "vfmtok", "study", str(file), "--out", str(tmp_path / out), *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        log = open(tmp_path / f"log{len(started)}.txt", "wb")  # noqa: SIM115
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        process.log = Path(log.name)
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
