import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_hita
import torch
from codes_place import ENVIRONMENT, TINY, in_one_thread, killed_after
from PIL import Image

import vfmtok
from vfmtok import cli
from vfmtok.commands import codes
from vfmtok.commands.generator_flags import generator_parser, generator_recipe
from vfmtok.data import code_cache
from vfmtok.data.code_cache import CodeCache
from vfmtok.data.records import Record, RecordDataset, write_records
from vfmtok.data.transforms import EvaluationCrop, TenCrop, to_unit_range
from vfmtok.data.views import VIEWS
from vfmtok.errors import ConfigError
from vfmtok.weights.hashing import tokenizer_hash

COUNT = 90


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    yield from in_one_thread(tmp_path_factory.mktemp("codes"), COUNT)


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def ten_crop(place, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "cache"
    assert cli.main(place.arguments(out, "--views", "ten-crop")) == 0
    return out


def test_ids_are_those_of_the_tokenizer(place, ten_crop):
    cache, records = CodeCache(ten_crop), RecordDataset(place.data)
    assert len(cache) == COUNT and cache.num_views == 20
    code_cache.check_tokenizer(cache, tokenizer_hash(place.tokenizer))
    for row in (0, 41, 89):
        crops = to_unit_range(TenCrop(32)(records[row].image))  # (10,3,32,32)
        views = torch.cat([crops[:5], crops[:5].flip(-1), crops[5:], crops[5:].flip(-1)])
        with torch.no_grad():
            expected = place.tokenizer.encode(views).ids
        found = torch.stack([cache[row, view][0] for view in range(20)])
        assert (found == expected).float().mean() > 0.98  # another batch may round a tie the other way
        assert cache[row, 0][1] == records[row].label
    assert cache.metadata["views"][5] == "1.05 top left flipped"
    assert cache.classes[2] == "Ωmega" and cache.code.grid == (4, 4)


def test_shifted_views(place, tmp_path):
    """Each of the nine shifts and its mirror image, pixel by pixel, against a padded array."""
    records = RecordDataset(place.data)
    transform, views = VIEWS["shift"](32, 0, 0)
    crops = transform(records[7].image)  # (9,3,32,32)
    padded = np.pad(EvaluationCrop(32)(records[7].image).numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
    found = {view.name: crops[view.crop] for view in views if not view.mirrored}
    assert len(views) == 18 and views[0].name == "centre" and not views[0].mirrored and len(found) == 9
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            name = f"down {down} right {right}" if down or right else "centre"
            expected = padded[:, 1 - down : 33 - down, 1 - right : 33 - right]
            np.testing.assert_array_equal(found[name].numpy(), expected)
    assert [(view.name, view.crop) for view in views[9:]] == [(f"{view.name} flipped", view.crop) for view in views[:9]]
    assert all(view.mirrored for view in views[9:])


def test_the_round_trip_is_measured_and_drawn(place, ten_crop):
    cache, records = CodeCache(ten_crop), RecordDataset(place.data)
    entries, values = cache.metadata["round_trip"]["entries"], []
    assert len(entries) == 32 and entries[0] == 0 and entries[-1] == COUNT - 1
    for row in entries:
        original = TenCrop(32)(records[row].image)[0].permute(1, 2, 0).numpy().astype(float)
        decoded = place.tokenizer.decode_to_uint8(cache[row, 0][0][None], 32)[0].numpy().astype(float)
        values.append(20 * np.log10(255 / np.sqrt(((original - decoded) ** 2).mean())))
    assert cache.metadata["round_trip"]["psnr_db"] == pytest.approx(np.mean(values), abs=1e-6)
    counts = np.bincount(np.load(ten_crop / "ids.npy").ravel(), minlength=64)
    assert cache.metadata["codebook_usage"]["used"] == (counts > 0).sum()
    p = counts[counts > 0] / counts.sum()
    assert cache.metadata["codebook_usage"]["perplexity"] == pytest.approx(np.prod(p**-p))
    sheet = Image.open(ten_crop / "contact_sheet.png")
    assert sheet.width > 1000 and len(sheet.getcolors(10**6)) > 1000


def test_both_codebooks_of_hita(place, tmp_path, capsys):
    """The cache keeps both counts, and a GPT's recipe takes both from it."""
    tokenizer = tiny_hita.tokenizer()
    vfmtok.save_pretrained(tokenizer, tmp_path / "hita")
    command = [
        "codes",
        str(place.data),
        str(tmp_path / "cache"),
        "--vq-ckpt",
        str(tmp_path / "hita"),
        "--views",
        "center",
    ]
    assert cli.main([*command, "--num-workers", "0"]) == 0
    cache, ids = CodeCache(tmp_path / "cache"), np.load(tmp_path / "cache" / "ids.npy")
    assert ids.shape == (COUNT, 1, 22) and cache.code == tokenizer.code
    out, parts = capsys.readouterr().out, (ids[..., :6], ids[..., 6:])
    for part, counts, usage in zip(parts, cache.code_counts(), cache.metadata["codebook_usages"], strict=True):
        assert np.array_equal(counts.numpy(), np.bincount(part.ravel(), minlength=32))
        assert usage["used"] == len(np.unique(part))
        assert f"of the {part.shape[2]} tokens {usage['used'] / 32:.1%}" in out
    command = f"--code-path {tmp_path / 'cache'} --gpt-model GPT-B --num-slots"
    recipe = generator_recipe(generator_parser().parse_args(f"{command} 6".split()))
    config = recipe.generator
    assert (config.num_holistic, config.num_tokens, config.vocab_size, config.num_classes) == (6, 16, 32, 3)
    command = f"--code-path {tmp_path / 'cache'} --vq-ckpt {tmp_path / 'hita'} --codebook-slots-embed-dim"
    generator_recipe(generator_parser().parse_args(f"{command} 6".split()))
    with pytest.raises(ConfigError, match=r"--codebook-slots-embed-dim 8 contradicts .*code_dim: 6"):
        generator_recipe(generator_parser().parse_args(f"{command} 8".split()))


def test_kill_9_and_again_gives_the_same_bytes(place, ten_crop, tmp_path):
    out = tmp_path / "cache"
    command = [sys.executable, "-m", "vfmtok", *place.arguments(out, "--views", "ten-crop")]
    assert killed_after(12, command, out) == -signal.SIGKILL
    progress = np.frombuffer((out / "progress.bin").read_bytes(), np.uint8)
    assert 12 <= progress.sum() < COUNT
    written = np.load(out / "ids.npy")[progress == 1]
    np.testing.assert_array_equal(written, np.load(ten_crop / "ids.npy")[progress == 1])
    with pytest.raises(vfmtok.errors.DataError, match="not complete"):
        CodeCache(out)

    todo = sum(map(len, code_cache.CodeCacheWriter(out).blocks_to_do(4)))
    assert todo - (progress == 0).sum() < 4  # of what was done, at most a batch is done again
    assert cli.main(place.arguments(out, "--views", "ten-crop")) == 0
    assert content(out) == content(ten_crop)


def test_two_processes_write_what_one_writes(place, ten_crop, tmp_path):
    out = tmp_path / "cache"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "vfmtok"]
    command = [*launch, *place.arguments(out, "--views", "ten-crop")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert content(out) == content(ten_crop)
    assert done.stdout.count("round-trip PSNR") == 1  # printed once


def test_an_error_of_the_first_of_two_processes_is_one_line(place, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    program = f"""
import sys
import vfmtok.cli
from vfmtok import distributed
code = vfmtok.cli.main({place.arguments(tmp_path / "mine")!r})
sys.stdout.write(f"exit {{code}}\\n")  # in one piece
distributed.leave(0)  # torchrun would write a report about any other code
"""
    (tmp_path / "program.py").write_text(program)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, str(tmp_path / "program.py")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["exit", "2", "exit", "2"], done.stderr
    assert done.stderr.count("is not empty (it has thesis.tex)") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["contact_sheet.png", "cache.json.part"])
def test_what_cannot_be_written_at_the_end_is_one_line(place, tmp_path, monkeypatch, capsys, name):
    out, finish = tmp_path / "cache", codes.finish

    def finish_with_an_obstacle(*arguments):
        (out / name).mkdir()
        finish(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(codes, "finish", finish_with_an_obstacle)
        assert cli.main(place.arguments(out, "--views", "center")) == 2
    assert f"cannot write {out}" in capsys.readouterr().err.splitlines()[-1]
    (out / name).rmdir()
    monkeypatch.setattr(codes, "encode_views", None)  # nothing is encoded again
    assert cli.main(place.arguments(out, "--views", "center")) == 0
    assert len(CodeCache(out)) == COUNT


def test_running_a_complete_cache_again_changes_nothing(place, ten_crop, capsys):
    before = content(ten_crop)
    assert cli.main(place.arguments(ten_crop, "--views", "ten-crop")) == 0
    assert "already complete" in capsys.readouterr().out
    assert content(ten_crop) == before
    assert cli.main(place.arguments(ten_crop, "--views", "center")) == 2
    assert "holds a token cache with another views" in capsys.readouterr().err
    assert cli.main(place.arguments(ten_crop, "--views", "ten-crop", "--set", "decoder.heads=2")) == 2
    assert "another tokenizer_hash" in capsys.readouterr().err


@pytest.mark.parametrize("views, count", [("center", 1), ("flip", 2), ("random", 3)])
def test_other_views(place, tmp_path, views, count, capsys):
    out = tmp_path / "cache"
    chosen = ["--num-random-views", "3"] if views == "random" else []
    assert cli.main(place.arguments(out, "--views", views, *chosen, "--precision", "bf16")) == 0
    cache = CodeCache(out)
    assert cache.num_views == count and cache.metadata["precision"] == "bf16"
    transform, plan = VIEWS[views](32, 3, 0)
    crops = torch.stack([transform(RecordDataset(place.data)[i].image, 0, i) for i in range(4)])
    crops = crops if crops.ndim == 5 else crops[:, None]
    expected = codes.encode_views(place.tokenizer, crops, plan, "bf16")
    np.testing.assert_array_equal(np.load(out / "ids.npy")[:4], expected)
    assert f"{COUNT} records x {count} views x 16 tokens" in capsys.readouterr().out


def test_a_bad_record_gets_its_neighbours_ids(place, tmp_path, capsys):
    good = [RecordDataset(place.data)[i] for i in range(COUNT)]
    records = [*good, *good]
    records[50] = Record(b"no image", 2, "broken.jpg")
    write_records(tmp_path / "lmdb", [Record(r.image, r.label, f"{i}") for i, r in enumerate(records)])
    arguments = place.arguments(tmp_path / "cache", "--views", "center")
    arguments[1] = str(tmp_path / "lmdb")
    assert cli.main(arguments) == 0
    cache = CodeCache(tmp_path / "cache")
    assert cache.metadata["replaced_rows"] == [50]
    assert torch.equal(cache[50, 0][0], cache[51, 0][0]) and cache[50, 0][1] == records[51].label
    assert 50 not in cache.metadata["round_trip"]["entries"]
    assert "bad records, replaced by the next good one: 1" in capsys.readouterr().out


def test_too_many_bad_records_stay_an_error(place, tmp_path, capsys):
    good = [RecordDataset(place.data)[i] for i in range(COUNT)]
    bad = (30, 60)  # the loader of every new run alone would count one of them only
    records = [Record(b"junk" if i in bad else r.image, r.label, f"{i}") for i, r in enumerate(good)]
    write_records(tmp_path / "lmdb", records)
    out, lines = tmp_path / "cache", []
    arguments = place.arguments(out, "--views", "center")
    arguments[1] = str(tmp_path / "lmdb")
    for _ in range(3):
        assert cli.main(arguments) == 2
        lines.append(capsys.readouterr().err.splitlines()[-1])
        with pytest.raises(vfmtok.errors.DataError, match="not complete"):
            CodeCache(out)
    assert "2 of the 90 records" in lines[0] and "(rows 30, 60), more than 1%" in lines[0]
    assert len(set(lines)) == 1


def test_errors_are_one_line(place, tmp_path, capsys):
    out = tmp_path / "cache"
    cases = {
        "no dataset at": ("1", str(tmp_path / "nowhere")),
        "no weight file at": ("4", str(tmp_path / "nothing.pt")),
        "not those of VFMTok": ("4", str(place.encoder)),
        "must be positive": ("10", "0"),
    }
    for message, (position, value) in cases.items():
        arguments = place.arguments(out)
        arguments[int(position)] = value
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not out.exists()


def test_the_hash_is_of_weights_and_configuration(place, tmp_path):
    found = tokenizer_hash(place.tokenizer)
    moved = tmp_path / "elsewhere.pt"
    moved.write_bytes(place.encoder.read_bytes())

    def build(*overrides: str) -> vfmtok.VFMTok:
        tokenizer = vfmtok.VFMTok(vfmtok.load_config(TINY, [f"encoder.weights={moved}", *overrides]))
        return vfmtok.load_released(tokenizer, torch.load(place.weights))

    assert tokenizer_hash(build()) == found != ""
    assert tokenizer_hash(build("decoder.heads=2")) != found
    changed = build()
    changed.encoder.backbone.norm.weight.data[0] += 1e-6
    assert tokenizer_hash(changed) != found


def test_evaluation_crop_is_the_first_view(place):
    image = RecordDataset(place.data)[0].image
    transform, views = VIEWS["flip"](32, 0, 0)
    assert torch.equal(transform(image), EvaluationCrop(32)(image)) and [v.mirrored for v in views] == [False, True]
