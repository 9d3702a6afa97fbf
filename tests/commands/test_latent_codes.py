"""`vfmtok codes` of continuous tokenizers: latents, samples or moments of a posterior, and their statistics."""

import subprocess
import sys
from pathlib import Path

import continuous_family
import numpy as np
import pytest
import timm
import tiny_vfmae
import torch
from codes_place import ENVIRONMENT, killed_after
from photographs import jpeg, photographs
from PIL import Image
from tokenizers.vfm_vae import tiny as tiny_vfm_vae

import vfmtok
from vfmtok import cli
from vfmtok.commands import codes
from vfmtok.data import code_cache
from vfmtok.data.code_cache import CodeCache
from vfmtok.data.latent_cache import LatentCache, open_cache
from vfmtok.data.records import Record, RecordDataset, write_records
from vfmtok.data.transforms import EvaluationCrop, to_unit_range
from vfmtok.data.views import View
from vfmtok.errors import DataError
from vfmtok.generators.counter_random import Draws
from vfmtok.weights.hashing import tokenizer_hash

FAMILIES = continuous_family.FAMILIES

COUNT = 40
COMMAND = [str(Path(continuous_family.__file__)), "vfmtok"]


class Place:
    def __init__(self, folder: Path):
        self.folder, self.data = folder, folder / "lmdb"
        images = [photo.resize((24, 20)) for photo in photographs()]
        records = [Record(jpeg(images[i % 8].rotate(7 * i)), i % 3, f"{i}.jpg") for i in range(COUNT)]
        write_records(self.data, records, classes=["a", "b", "c"])
        self.plain, self.vae = continuous_family.tokenizer(), continuous_family.tokenizer(True)
        vfmtok.save_pretrained(self.plain, folder / "plain")
        vfmtok.save_pretrained(self.vae, folder / "vae")
        self.crops = torch.stack([EvaluationCrop(16)(RecordDataset(self.data)[i].image) for i in range(COUNT)])

    def arguments(self, out: Path, *more: str, tokenizer: str = "plain") -> list[str]:
        model = str(self.folder / tokenizer)
        return ["codes", str(self.data), str(out), "--vq-ckpt", model, "--batch-size", "4", "--num-workers", "0", *more]

    def moments(self, tokenizer, mirrored: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and std (N,C,h,w) of all images by the tokenizer itself."""
        images = to_unit_range(self.crops)
        posterior = tokenizer.encode(images.flip(-1) if mirrored else images).posterior
        return posterior.mean, posterior.std


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the subprocesses: sums must be taken in the same order
    yield Place(tmp_path_factory.mktemp("latents"))
    torch.set_num_threads(threads)


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def sampled(place) -> Path:
    """Of the VAE, one sample of each of two views, in one go."""
    out = place.folder / "sampled"
    assert cli.main(place.arguments(out, tokenizer="vae")) == 0
    return out


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_latents_are_those_of_the_tokenizer(place, tmp_path, capsys, dtype):
    out = tmp_path / "cache"
    assert cli.main(place.arguments(out, *(["--latent-dtype", dtype] if dtype else []))) == 0
    printed, stored = capsys.readouterr().out, np.load(out / "latents.npy")  # a plain array for anybody's program
    assert stored.shape == (COUNT, 2, 1, 4, 4, 4) and stored.dtype == (dtype or "float16")
    assert "latents of 4 x 4 x 4" in printed and "codebook" not in printed
    cache, rounding = LatentCache(out), 0 if dtype else 2**-11
    for view in (0, 1):
        expected = place.moments(place.plain, mirrored=view == 1)[0]
        np.testing.assert_allclose(stored[:, view, 0], expected.numpy(), rtol=rounding, atol=1e-6)
        latents, label = cache[7, view]
        assert latents.dtype == torch.float32 and label == 7 % 3
        assert torch.equal(latents, torch.from_numpy(stored[7, view, 0].astype(np.float32)))
    assert not cache.has_moments and cache.code == place.plain.code
    code_cache.check_tokenizer(cache, tokenizer_hash(place.plain))
    assert not (out / "progress.bin").exists() and (out / "ids.npy").exists() is False
    assert isinstance(open_cache(out), LatentCache)
    with pytest.raises(DataError, match="is a latent cache"):
        CodeCache(out)


def test_statistics_are_of_all_rows_and_views(place, tmp_path, capsys):
    out = tmp_path / "cache"
    assert cli.main(place.arguments(out, "--latent-dtype", "float32")) == 0
    values = np.load(out / "latents.npy")[:, :, 0].reshape(-1, 4, 4, 4).astype(np.float64)
    found = LatentCache(out).statistics
    assert found.count == 2 * COUNT and found.mean.shape == (4, 1, 1)
    np.testing.assert_allclose(found.mean.flatten(), values.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found.std.flatten(), values.std((0, 2, 3), ddof=1), rtol=1e-6)
    before = content(out)
    capsys.readouterr()
    assert cli.main(place.arguments(out, "--latent-dtype", "float32", "--stats-per", "position")) == 0
    assert "now measured, per position" in capsys.readouterr().out
    found = LatentCache(out).statistics
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.std, values.std(0, ddof=1), rtol=1e-6)
    assert cli.main(place.arguments(out, "--latent-dtype", "float32", "--stats-per", "channel")) == 0
    assert content(out) == before


def test_the_round_trip_is_measured_and_drawn(place, sampled):
    cache, values = LatentCache(sampled), []
    for row in cache.metadata["round_trip"]["entries"]:
        original = place.crops[row].permute(1, 2, 0).numpy().astype(float)
        decoded = place.vae.decode_to_uint8(cache[row, 0][0][None], 16)[0].numpy().astype(float)
        values.append(20 * np.log10(255 / np.sqrt(((original - decoded) ** 2).mean())))
    assert len(values) == 32
    assert cache.metadata["round_trip"]["psnr_db"] == pytest.approx(np.mean(values), abs=1e-6)
    assert Image.open(sampled / "contact_sheet.png").width > 1000


def test_samples_are_functions_of_seed_record_and_view(place, sampled, tmp_path):
    stored = np.load(sampled / "latents.npy").astype(np.float32)
    for view in (0, 1):
        mean, std = place.moments(place.vae, mirrored=view == 1)
        noise = Draws(0, torch.arange(COUNT) * 2 + view).normal("posterior", 64).view(-1, 4, 4, 4)
        np.testing.assert_allclose(stored[:, view, 0], (mean + std * noise).numpy(), rtol=2**-10, atol=1e-6)
    other = tmp_path / "other"
    assert cli.main(place.arguments(other, "--batch-size", "7", tokenizer="vae")) == 0
    np.testing.assert_allclose(np.load(other / "latents.npy").astype(np.float32), stored, rtol=2**-9, atol=1e-6)
    seeded = tmp_path / "seeded"
    assert cli.main(place.arguments(seeded, "--global-seed", "5", tokenizer="vae")) == 0
    assert np.abs(np.load(seeded / "latents.npy").astype(np.float32) - stored).mean() > 0.01
    assert LatentCache(seeded).metadata["seed"] == 5


def test_moments_and_means(place, tmp_path):
    mean, std = place.moments(place.vae, mirrored=False)
    for kind, expected in (("moments", torch.stack([mean, std], 1)), ("mean", mean[:, None])):
        out = tmp_path / kind
        arguments = ("--posterior", kind, "--views", "center", "--latent-dtype", "float32")
        assert cli.main(place.arguments(out, *arguments, tokenizer="vae")) == 0
        np.testing.assert_allclose(np.load(out / "latents.npy")[:, 0], expected.numpy(), rtol=1e-5, atol=1e-6)
    moments = LatentCache(tmp_path / "moments")
    assert moments.has_moments and moments[3, 0][0].shape == (2, 4, 4, 4)
    variance = mean.double().var((0, 2, 3)) + std.double().square().mean((0, 2, 3))  # of what is drawn
    np.testing.assert_allclose(moments.statistics.std.flatten(), variance.sqrt(), rtol=1e-5)


def test_kill_9_and_again_gives_the_same_bytes(place, sampled, tmp_path):
    out = tmp_path / "cache"
    command = [sys.executable, *COMMAND, *place.arguments(out, tokenizer="vae")]
    killed_after(8, command, out)
    if (out / "progress.bin").exists():  # else it was too quick for the signal, and there is nothing to continue
        with pytest.raises(DataError, match="not complete"):
            LatentCache(out)
    assert cli.main(place.arguments(out, tokenizer="vae")) == 0
    assert content(out) == content(sampled)


def test_an_unfinished_cache_is_continued(place, sampled, tmp_path):
    """Rows that are done are not computed again: what lies there stays."""
    out = tmp_path / "cache"
    assert cli.main(place.arguments(out, tokenizer="vae")) == 0
    text = (out / "cache.json").read_text()
    (out / "cache.json").write_text(text.replace('"complete": true', '"complete": false'))
    (out / "stats.safetensors").unlink()
    progress = np.full(COUNT, code_cache.DONE, np.uint8)
    progress[4:12] = code_cache.TO_DO
    (out / "progress.bin").write_bytes(progress.tobytes())
    latents = np.load(out / "latents.npy", mmap_mode="r+")
    latents[4:12] = 0
    latents[20:] += 1  # a mark
    latents.flush()
    assert cli.main(place.arguments(out, tokenizer="vae")) == 0
    expected = np.load(sampled / "latents.npy")
    expected[20:] += 1
    np.testing.assert_array_equal(np.load(out / "latents.npy"), expected)


@pytest.mark.slow  # two processes import everything; test_codes.py has the same with ids
def test_two_processes_write_what_one_writes(place, sampled, tmp_path):
    out = tmp_path / "cache"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *COMMAND]
    command = [*launch, *place.arguments(out, tokenizer="vae")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found, expected = content(out), content(sampled)
    statistics = [LatentCache(folder).statistics for folder in (out, sampled)]
    torch.testing.assert_close(statistics[0].std, statistics[1].std, atol=0, rtol=1e-6)
    del found["stats.safetensors"], expected["stats.safetensors"]
    assert found == expected and done.stdout.count("round-trip PSNR") == 1


def test_another_cache_is_refused(place, sampled, capsys):
    before = content(sampled)
    assert cli.main(place.arguments(sampled, tokenizer="vae")) == 0
    for more, key in ((["--posterior", "moments"], "seed"), (["--latent-dtype", "float32"], "latent_dtype")):
        assert cli.main(place.arguments(sampled, *more, tokenizer="vae")) == 2
        assert f"holds a latent cache with another {key}" in capsys.readouterr().err
    assert cli.main(place.arguments(sampled)) == 2
    assert "another tokenizer_hash" in capsys.readouterr().err
    assert content(sampled) == before


def test_latents_of_a_vfmae(place, tmp_path):
    torch.manual_seed(0)
    encoder = tmp_path / "encoder.pt"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), encoder)
    vfmae = tiny_vfmae.tokenizer(encoder={**tiny_vfmae.CONFIG["encoder"], "weights": str(encoder)})
    vfmtok.save_pretrained(vfmae, tmp_path / "vfmae")
    arguments = place.arguments(tmp_path / "cache", "--views", "center", "--set", f"encoder.weights={encoder}")
    arguments[4] = str(tmp_path / "vfmae")
    assert cli.main(arguments) == 0
    cache = LatentCache(tmp_path / "cache")
    crop = EvaluationCrop(32)(RecordDataset(place.data)[5].image)
    with torch.no_grad():
        latents = vfmae.encode(to_unit_range(crop[None])).latents
    assert cache.code == vfmae.code and cache.metadata["posterior"] is None
    torch.testing.assert_close(cache[5, 0][0][None], latents, rtol=2e-3, atol=1e-3)


def test_latents_of_a_vfm_vae(place):
    """Its moments, and a sample of them by its own encoder."""
    vae, views = tiny_vfm_vae.tiny(), [View("centre", 0, False), View("centre flipped", 0, True)]
    crops = torch.stack([EvaluationCrop(64)(RecordDataset(place.data)[row].image) for row in (5, 9)])[:, None]
    rows = torch.tensor([5, 9])
    moments = codes.encode_views(vae, crops, views, "fp32", codes.Kept(posterior="moments"))
    sample = codes.encode_views(vae, crops, views, "fp32", codes.Kept(posterior="sample", seed=7), rows)
    assert moments.shape == (2, 2, 2, *vae.code.shape) and sample.shape == (2, 2, 1, *vae.code.shape)
    for view in (0, 1):
        noise = Draws(7, rows * 2 + view).normal("posterior", sample[0, 0].numel()).view(2, *vae.code.shape)
        expected = moments[:, view, 0] + moments[:, view, 1] * noise
        torch.testing.assert_close(sample[:, view, 0], expected, rtol=1e-4, atol=1e-5)
    assert (moments[:, :, 1] > 0).all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--posterior", "sample"], "has no posterior"),
        (["--posterior", "moments"], "has no posterior"),
        (["--rank", "2"], "does not rank its codes"),
        (["--global-seed", "3"], "--global-seed belongs to"),
    ],
)
def test_what_the_tokenizer_has_not_is_one_line(place, tmp_path, capsys, more, message):
    assert cli.main(place.arguments(tmp_path / "cache", *more)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "cache").exists()


def test_a_latent_that_float16_does_not_hold_is_one_line(place, tmp_path, capsys):
    large = continuous_family.tokenizer()
    large.to_moments.bias[:4] = torch.tensor([0.0, 1e5, 0, 0])
    vfmtok.save_pretrained(large, tmp_path / "large")
    arguments = place.arguments(tmp_path / "cache")
    arguments[4] = str(tmp_path / "large")
    assert cli.main(arguments) == 2
    assert "record 0 is beyond the range of float16 (--latent-dtype float32)" in capsys.readouterr().err
    arguments[2] = str(tmp_path / "whole")
    assert cli.main([*arguments, "--latent-dtype", "float32"]) == 0
