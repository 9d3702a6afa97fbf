"""Generated latents beside those of training images: the floor and the nearest neighbour, beside loops."""

import json

import numpy as np
import pytest
import timm
import tiny_vfmae
import torch
from test_latent_cache import SHAPE, write

import vfmtok
from vfmtok import cli
from vfmtok.data.latent_cache import LatentCache
from vfmtok.data.records import RecordDataset, write_records
from vfmtok.errors import DataError
from vfmtok.evaluation.latent_agreement import largest_similarity, positional_latents


@pytest.fixture(scope="module", params=[None, "moments"])
def cache(request, tmp_path_factory):
    """20 images of two views and two classes."""
    path = tmp_path_factory.mktemp("latents") / "train"
    write(path, posterior=request.param)
    return LatentCache(path)


def entry(cache, record, view):
    """The latent (C,h,w); of moments the mean."""
    found = cache[record, view][0]
    return found[0] if cache.has_moments else found


def cosine(cache, one, other):
    mean, std = cache.statistics.mean.double(), cache.statistics.std.double()
    one, other = (((latent.double() - mean) / std).flatten() for latent in (one, other))
    return float(one @ other / (one.norm() * other.norm()))


@pytest.mark.parametrize("values", [2**24, 1])
def test_similarity_is_that_of_a_loop(cache, monkeypatch, values):
    monkeypatch.setattr("vfmtok.evaluation.latent_agreement.COMPARED", values)  # all, or a training image at a time
    latents = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    latents[2] = entry(cache, 7, 1)
    wanted = [max(cosine(cache, x, entry(cache, i, v)) for i in range(20) for v in range(2)) for x in latents]
    found = largest_similarity(latents, cache)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert found[2] == pytest.approx(1, abs=1e-5) and found[0] < 0.9
    some = [max(cosine(cache, x, entry(cache, i, v)) for i in (0, 10, 19) for v in range(2)) for x in latents]
    chosen = largest_similarity(latents, cache, 3)
    np.testing.assert_allclose(chosen, some, atol=1e-5)


def test_the_floor_takes_every_place_from_an_image_of_the_class(cache):
    labels = torch.tensor([0, 1, 1, 0])
    found = positional_latents(cache, labels, seed=3)
    assert found.shape == (4, *SHAPE)
    donors = set()
    for latent, label in zip(found, labels, strict=True):
        for i in range(SHAPE[1]):
            for j in range(SHAPE[2]):
                same = [
                    (record, view)
                    for record in range(20)
                    for view in range(2)
                    if torch.equal(entry(cache, record, view)[:, i, j], latent[:, i, j])
                ]
                assert len(same) == 1 and cache.labels[same[0][0]] == label
                donors.add(same[0])
    assert len(donors) > 8  # another one for each place
    assert torch.equal(positional_latents(cache, labels, seed=3), found)
    with pytest.raises(DataError, match="no training image has class 5"):
        positional_latents(cache, torch.tensor([5]), seed=0)


def test_the_command_on_a_diffusion_generator(sample_set, tmp_path):
    """A VFMAE, its cache and a DiT without training: every number is there."""
    data = tmp_path / "data"
    for split, step in (("train", 20), ("val", 9)):
        records = RecordDataset(sample_set / f"{split}_lmdb")
        some = [records[row] for row in range(0, len(records), step)]
        write_records(data / f"{split}_lmdb", some, classes=records.classes)
    encoder = tmp_path / "encoder.pt"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), encoder)
    vfmae = tiny_vfmae.tokenizer(encoder={**tiny_vfmae.CONFIG["encoder"], "weights": str(encoder)})
    vfmtok.save_pretrained(vfmae, tmp_path / "vfmae")
    named = ["--vq-ckpt", str(tmp_path / "vfmae"), "--set", f"tokenizer.encoder.weights={encoder}"]
    codes = ["codes", str(data / "train_lmdb"), str(tmp_path / "codes"), *named, "--views", "center"]
    assert cli.main([*codes, "--num-workers", "0"]) == 0
    shape = {"in_channels": 6, "size": 4, "width": 32, "depth": 1, "heads": 2, "num_classes": 9}
    dit = vfmtok.DiT(vfmtok.dit_config("LightningDiT-B/1", **shape)).eval()
    cache = LatentCache(tmp_path / "codes")
    with torch.no_grad():
        dit.statistics.mean.copy_(cache.statistics.mean.expand(6, 4, 4))
        dit.statistics.std.copy_(cache.statistics.std.expand(6, 4, 4))
    vfmtok.save_pretrained(dit, tmp_path / "dit", tokenizer_hash=cache.metadata["tokenizer_hash"])
    few = ["--per-class", "2", "--real-images", "30", "--probe-images", "60", "--num-workers", "0"]
    few += ["--overlap-images", "20", "--cfg-scales", "1", "--sampling", "steps=3"]
    more = ["--data", str(data), "--code-path", str(tmp_path / "codes"), "--out", str(tmp_path / "out")]
    assert cli.main(["agreement", "--gpt", str(tmp_path / "dit"), *named, *more, *few]) == 0
    numbers = json.loads((tmp_path / "out/results.json").read_text())["numbers"]
    assert numbers["agreement of real held-out images"]["value"] > 1 / 9
    assert numbers["agreement of held-out images, decoded from latents"]["value"] <= 1
    mean, largest = (numbers[f"{which} latent similarity, no CFG"] for which in ("mean", "largest"))
    assert -1 <= mean["value"] <= largest["value"] < 1
    assert "cosine of normalised latents" in largest["protocol"]
