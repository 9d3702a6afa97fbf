"""Which changes make a step another one: those of what is learned or measured, and none of where things lie."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vfmtok
from vfmtok.commands.study import PARSERS
from vfmtok.errors import WeightsError
from vfmtok.study.identities import Contents
from vfmtok.study.speed import Speed, estimate
from vfmtok.study.steps import Plan
from vfmtok.weights.checkpoint import CheckpointFolder
from vfmtok.weights.saved import Checkpoint


def names(plan: Plan) -> list[str]:
    return [step.folder.name for step in plan.steps]


def kinds_that_changed(one: Plan, other: Plan) -> set[str]:
    return {a.kind for a, b in zip(one.steps, other.steps, strict=True) if a.key != b.key}


def test_steps_do_not_depend_on_where_the_images_lie(plan):
    here, there = plan("/data/here"), plan("/elsewhere/moved")
    assert names(here) == names(there)
    flags = {step.kind: step.flags for step in there.steps}
    assert "/elsewhere/moved/train_lmdb" in flags["reconstruction"] and "/data/here" not in str(flags)
    assert kinds_that_changed(here, plan(reconstruction=here.study.reconstruction.replace("32", "16"))) == {
        "reconstruction"
    }
    other = replace(here.data, fingerprints=("others", "val"))
    moved = Plan(here.study, here.rows, other, here.folder, here.asked)
    assert kinds_that_changed(here, moved) == {step.kind for step in here.steps}


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"of_tokenizer": ["run.log_every=7", "run.save_every=3", "run.keep=9", "run.validate_every=2"]}, False),
        ({"of_tokenizer": ["run.tensorboard=true", "data.num_workers=3", "run.results_dir=x"]}, False),
        ({"of_generator": ["pictures.every=2", "pictures.sampling.cfg_scale=3", "run.validate_every=1"]}, False),
        ({"of_tokenizer": ["optimizer.lr=1e-2"]}, True),
        ({"of_tokenizer": ["run.validation_images=2"]}, True),  # the log's numbers are of these
        ({"of_generator": ["run.global_batch=2"]}, True),
    ],
)
def test_only_what_is_learned_or_measured_counts(plan, changes, changed):
    assert (names(plan()) != names(plan(**changes))) == changed


def write_run(folder: Path, value: float, step: int) -> None:
    """A checkpoint of a run, as far as it is read here."""
    saved = Checkpoint(step, {"model": {"a": torch.full((2,), value)}}, {}, "a: 1\n")
    CheckpointFolder(folder / "checkpoints").save(saved)


def write_file(path: Path, value: float, step: int) -> None:
    path.write_bytes(bytes([int(value)]))


@pytest.mark.parametrize(
    ("key", "write"),
    [
        ("run.start_from", write_file),
        ("run.start_from", write_run),
        ("tokenizer.encoder.weights", write_file),
    ],
)
def test_what_a_recipe_names_counts_by_its_content(plan, tmp_path, key, write):
    """The same content elsewhere is the same step; other content at the same path is another one."""

    def names_with(path: Path) -> list[str]:
        return names(plan(of_tokenizer=[f"{key}={path}"]))

    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        write(path, 0.0, 1)
    first = names_with(one)
    assert names_with(two) == first != names(plan())
    write(two, 1.0, 2)
    assert names_with(two) != first == names_with(one)


def test_files_among_flags_count_by_their_content(plan, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"vgg")
    flags = "--image-size-eval 32 --no-fid --lpips{}"
    first, second = (plan(reconstruction=flags.format(f" {tmp_path / name}")) for name in ("one", "two"))
    assert names(first) == names(second)
    joined = [plan(reconstruction=flags.format(f"={tmp_path / name}")) for name in ("one", "two")]
    assert names(joined[0]) == names(joined[1])
    (tmp_path / "two").write_bytes(b"another")
    third = plan(reconstruction=flags.format(f" {tmp_path / 'two'}"))
    assert kinds_that_changed(first, third) == {"reconstruction"}


def test_given_weights_count_by_their_content(plan, tmp_path, root):
    tokenizer = vfmtok.build_tokenizer(vfmtok.load_config(root / "configs/tiny.yaml", ["encoder.weights=random"]))
    for name in ("one", "two"):
        vfmtok.save_pretrained(tokenizer, tmp_path / name)

    def rows(name: str) -> dict:
        row = {"name": "given", "weights": str(tmp_path / name), "tokenizer": str(root / "configs/tiny.yaml")}
        return {"rows": [row], "generator": None, "generation": None, "agreement": None, "columns": []}

    first, second = plan(**rows("one")), plan(**rows("two"))
    assert names(first) == names(second)
    assert [step.flags[1] for step in second.steps] == [str(tmp_path / "two")] * len(second.steps)
    with torch.no_grad():
        next(tokenizer.pixel_decoder.parameters()).add_(1)
    vfmtok.save_pretrained(tokenizer, tmp_path / "two")
    assert set(names(plan(**rows("two")))).isdisjoint(names(first))
    published = "FoundationVision/LlamaGen:vq_ds16_c2i"  # counts by its name: its manifest has its hash
    assert Contents().of_weights(published) == published
    with pytest.raises(WeightsError, match=r"row 'given': no weights at .*three"):
        plan(**rows("three"))


# --------------------------------------------------------------------------------------
# How long they take, by the flags of their commands
# --------------------------------------------------------------------------------------


def test_estimates_follow_the_flags_and_the_defaults_of_the_commands(plan):
    """1,000 + 100 images of two classes, at one image a second, no time to start."""

    def seconds(**changes) -> dict[str, float]:
        found = plan(**changes)
        return {
            step.kind: estimate(step, lambda training: Speed(1.0, 0.0), found.data, PARSERS) for step in found.steps
        }

    by_default = seconds(codes="", held_out_codes="--views center", agreement="")
    assert by_default["codes"] == pytest.approx(1000 * 2 / 6) and by_default["held-out codes"] == pytest.approx(100 / 6)
    assert by_default["reconstruction"] == pytest.approx((200 + 1000) / 6)  # with a linear probe
    agreement = PARSERS["agreement"]()
    wanted = agreement.get_default("per_class") * 2 * len(agreement.get_default("cfg_scales"))
    assert by_default["agreement"] == wanted == 60 * 2 * 2
    assert by_default["generation"] == 4 and by_default["images"] == 12
    flags = {
        "codes": "--views random --num-random-views=3",
        "held_out_codes": "--views ten-crop",
        "agreement": "--per-class 5 --cfg-scales 1 2 3",
        "generation": "--num-fid-samples=7 --cfg-scale 1,1.5,2",
    }
    changed = seconds(**flags)
    assert changed["codes"] == pytest.approx(1000 * 3 / 6) and changed["held-out codes"] == pytest.approx(100 * 20 / 6)
    assert (changed["agreement"], changed["generation"]) == (5 * 2 * 3, 7 * 3)
    found = plan()
    tokenizer = found.by_row["base", 0]["tokenizer"]
    assert estimate(tokenizer, lambda training: Speed(2.0, 5.0), found.data, PARSERS) == 5 + 4 * 4 / 2
