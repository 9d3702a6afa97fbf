"""Latents for a generator: from a cache, drawn from its moments, or of images; and their statistics."""

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import continuous_family
import numpy as np
import pytest
import ranks
import torch
from fake_cuda import FakeCuda
from photographs import jpeg, photographs
from small_caches import CLASSES, small_recipe, write_cache

import vfmtok
from vfmtok import cli, distributed
from vfmtok.commands.codes import Kept, encode_views
from vfmtok.commands.generator_flags import generator_parser, generator_recipe
from vfmtok.data.latent_cache import LatentCache
from vfmtok.data.records import Record, write_records
from vfmtok.data.views import View
from vfmtok.errors import ConfigError, DataError
from vfmtok.generators.counter_random import Draws
from vfmtok.training.chosen_codes import chosen_codes, measured_statistics
from vfmtok.training.code_source import drawn, open_codes, training_codes
from vfmtok.training.generator_run import GeneratorRun

FAMILIES = continuous_family.FAMILIES

ALONE = distributed.World(0, 1, torch.device("cpu"))
COUNT = 14


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Images, a variational tokenizer and its caches: of moments, of means, in float32 of the centre crop."""
    folder = tmp_path_factory.mktemp("latent_source")
    images = [photo.resize((24, 20)) for photo in photographs()]
    records = [Record(jpeg(images[i % 8].rotate(9 * i)), i % 3, f"{i}.jpg") for i in range(COUNT)]
    write_records(folder / "lmdb", records, classes=CLASSES)
    vfmtok.save_pretrained(continuous_family.tokenizer(True), folder / "vae")
    for kind in ("moments", "mean"):
        options = ("--posterior", kind, "--views", "center", "--latent-dtype", "float32", "--num-workers", "0")
        command = ["codes", str(folder / "lmdb"), str(folder / kind), "--vq-ckpt", str(folder / "vae"), *options]
        assert cli.main(command) == 0
    return folder


def recipe_of(folder: Path, images: bool = False, cache: str = "moments"):
    """Of a generator that learns these latents; which one it is the source of them does not ask."""
    data = {"code_path": str(folder / cache), "val_code_path": str(folder / cache), "vq_ckpt": str(folder / "vae")}
    if images:
        lmdb = str(folder / "lmdb")
        data = {"code_path": None, "path": lmdb, "val_path": lmdb, "vq_ckpt": str(folder / "vae"), "flip": False}
    recipe = small_recipe(folder, data=data)
    code = continuous_family.tokenizer(True).code
    return dataclasses.replace(recipe, generator=SimpleNamespace(code=code, num_classes=3))


def batches(folder: Path, count: int, start: int = 0, **options) -> list:
    recipe = recipe_of(folder, **options)
    codes = training_codes(open_codes(recipe, ALONE), recipe, ALONE, start, 8)
    found = [next(codes) for _ in range(count)]
    codes.close()
    return found


def test_latents_are_drawn_from_the_moments_as_the_encoder_draws_them(place):
    """The same numbers whether the cache or the tokenizer draws; another one of the same image in the next epoch."""
    cached, encoded = batches(place, 4), batches(place, 4, images=True)
    for one, other in zip(cached, encoded, strict=True):
        assert torch.equal(one.labels, other.labels) and one.samples_seen == other.samples_seen
        # The training's crop rounds a pixel otherwise here and there; other noise would differ by 0.2.
        torch.testing.assert_close(one.code, other.code, rtol=0, atol=0.005)
    code, positions = (torch.cat([getattr(batch, name) for batch in cached]) for name in ("code", "positions"))
    means = torch.from_numpy(np.load(place / "mean/latents.npy")[:, 0, 0])
    nearest = [(means - latent).square().sum((1, 2, 3)).argmin().item() for latent in code]
    again = [(i, j) for i in range(len(code)) for j in range(i) if nearest[i] == nearest[j]]
    assert again and all(not torch.equal(code[i], code[j]) for i, j in again) and len(set(positions.tolist())) == 32


def test_a_resumed_run_draws_what_the_uninterrupted_one_does(place):
    whole, resumed = batches(place, 5), batches(place, 2, start=24)
    assert torch.equal(resumed[0].code, whole[3].code) and torch.equal(resumed[1].code, whole[4].code)


def test_two_processes_draw_what_one_draws(place):
    found, recipe = [], recipe_of(place)
    for rank in range(2):
        world = distributed.World(rank, 2, torch.device("cpu"))
        codes = training_codes(open_codes(recipe, world), recipe, world, 0, 4)
        found.append(next(codes))
    whole = batches(place, 1)[0]
    by_position = {int(p): code for part in found for p, code in zip(part.positions, part.code, strict=True)}
    assert len(by_position) == 8
    assert all(torch.equal(by_position[int(p)], code) for p, code in zip(whole.positions, whole.code, strict=True))


def test_moments_are_drawn_on_the_device():
    with FakeCuda():
        stored, code = torch.zeros(3, 2, 4, 4, 4), continuous_family.tokenizer(True).code
        found = drawn(stored, code, Draws(0, torch.arange(3)), "cuda")
    assert found.device.type == "cuda" and found.shape == (3, 4, 4, 4)


@pytest.mark.parametrize("kept", [Kept(posterior="sample"), Kept(posterior="moments"), Kept(posterior="mean")])
def test_views_are_encoded_on_the_device(kept):
    tokenizer = continuous_family.tokenizer(True)
    views = [View("centre", 0, False), View("centre flipped", 0, True)]
    with FakeCuda(bf16=True) as cuda:
        crops = torch.zeros(3, 1, 3, 16, 16, dtype=torch.uint8, device="cuda")
        found = encode_views.__wrapped__(cuda.put(tokenizer), crops, views, "bf16", kept, torch.arange(3))
    parts = 2 if kept.posterior == "moments" else 1
    assert found.device.type == "cuda" and found.dtype == torch.float32 and found.shape == (3, 2, parts, 4, 4, 4)


def test_held_out_latents_are_the_same_of_images_and_of_moments(place):
    found = []
    for images in (False, True):
        recipe = recipe_of(place, images=images)
        data = open_codes(recipe, ALONE)
        source = data.held_out_records if images else data.held_out_cache
        found.append(chosen_codes(source, data, 6, ALONE, recipe))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    assert torch.equal(found[0][1], found[1][1]) and found[0][0].shape == (6, 4, 4, 4)


def _statistics(folder: Path, **options):
    recipe = recipe_of(folder, images=True)
    return measured_statistics(open_codes(recipe, ALONE), recipe, ALONE, **options)


@pytest.mark.parametrize("per", ["channel", "position"])
def test_statistics_of_images_are_those_of_their_latents(place, per):
    """Against NumPy's of all drawn latents at once; and near those of the moments, from which they are drawn."""
    recipe = recipe_of(place, images=True)
    data = open_codes(recipe, ALONE)
    latents = chosen_codes(data.held_out_records, data, COUNT, ALONE, recipe)[0].double().numpy()
    axes, shape = ((0, 2, 3), (4, 1, 1)) if per == "channel" else (0, (4, 4, 4))
    found = _statistics(place, count=COUNT, per=per)
    assert found.count == COUNT
    np.testing.assert_allclose(found.mean, latents.mean(axes).reshape(shape), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.std, latents.std(axes, ddof=1).reshape(shape), rtol=1e-5)
    if per == "channel":
        cached = measured_statistics(open_codes(recipe_of(place), ALONE), recipe_of(place), ALONE)
        assert cached.count == COUNT
        torch.testing.assert_close(cached.std, found.std, rtol=0.1, atol=0)
    assert _statistics(place, count=5).count == 5


def _statistics_of_a_rank(rank: int) -> dict[str, torch.Tensor]:
    folder, world = Path(os.environ["LATENT_PLACE"]), distributed.World(rank, 2, torch.device("cpu"))
    recipe = recipe_of(folder, images=True)
    found = measured_statistics(open_codes(recipe, world), recipe, world, COUNT)
    return {"std": found.std, "count": torch.tensor(found.count)}


@pytest.mark.slow  # two processes import everything; test_latent_statistics.py merges sums of two
def test_statistics_by_two_processes(place, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENT_PLACE", str(place))
    alone = _statistics(place, count=COUNT)
    for found in ranks.run(_statistics_of_a_rank, tmp_path):
        torch.testing.assert_close(found["std"], alone.std, rtol=1e-5, atol=0)
        assert found["count"] == COUNT


def test_a_cache_with_other_statistics(place):
    """Those of channels follow from those of places; for the others it says how to get them."""
    recipe = recipe_of(place, cache="mean")
    with pytest.raises(ConfigError, match="--stats-per position"):
        measured_statistics(open_codes(recipe, ALONE), recipe, ALONE, per="position")
    own, cache = measured_statistics(open_codes(recipe, ALONE), recipe, ALONE), LatentCache(place / "mean")
    try:
        cache.measure_again("position")
        data = open_codes(recipe, ALONE)
        assert measured_statistics(data, recipe, ALONE, per="position").mean.shape == (4, 4, 4)
        found = measured_statistics(data, recipe, ALONE)
        torch.testing.assert_close(found.std, own.std, rtol=1e-5, atol=0)
        torch.testing.assert_close(found.mean, own.mean, rtol=1e-5, atol=1e-6)
    finally:
        cache.measure_again("channel")


def test_ids_have_no_statistics(place, tmp_path):
    write_cache(tmp_path / "train")
    recipe = small_recipe(tmp_path)
    with pytest.raises(ConfigError, match="holds ids"):
        measured_statistics(open_codes(recipe, ALONE), recipe, ALONE)


def test_a_generator_of_ids_refuses_latents_and_the_other_way_round(place, tmp_path):
    recipe = small_recipe(place, data={"code_path": str(place / "moments")})
    with pytest.raises(ConfigError, match=r"the generator makes 16 tokens .*moments has latents of 4 x 4 x 4"):
        GeneratorRun(recipe, ALONE)
    command = ["--code-path", str(place / "moments"), "--gpt-model", "GPT-B"]
    with pytest.raises(ConfigError, match="learns ids"):
        generator_recipe(generator_parser().parse_args(command))
    write_cache(tmp_path / "train")
    latents = recipe_of(place)
    ids = dataclasses.replace(latents, data=small_recipe(tmp_path).data)
    with pytest.raises(ConfigError, match="the generator makes latents of 4 x 4 x 4"):
        open_codes(ids, ALONE)


def test_a_latent_that_is_not_finite_is_one_line(place, tmp_path):
    cache = tmp_path / "damaged"
    cache.mkdir()
    for file in (place / "mean").iterdir():
        (cache / file.name).write_bytes(file.read_bytes())
    latents = np.load(cache / "latents.npy", mmap_mode="r+")
    latents[:, 0, 0, 1, 2, 3] = np.inf
    latents.flush()
    recipe = recipe_of(place)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, code_path=str(cache)))
    assert isinstance(open_codes(recipe, ALONE).cache, LatentCache)
    with pytest.raises(DataError, match="damaged is damaged: a latent of label"):
        next(training_codes(open_codes(recipe, ALONE), recipe, ALONE, 0, 8))
