"""REG trains from images: the class token and the features it is aligned with are an encoder's."""

import pytest
import tiny_vfmae
import torch
from photographs import jpeg, photographs
from small_caches import small_recipe, write_latent_cache
from training_runs import assert_same, final, logged

import vfmtok
from vfmtok import distributed
from vfmtok.data.records import Record, write_records
from vfmtok.errors import ConfigError
from vfmtok.generators.counter_random import Draws
from vfmtok.training.train_generator import train_generator

ALONE = distributed.World(0, 1, torch.device("cpu"))
ENCODER = {"name": "test_vit", "image_size": 64, "levels": [6], "weights": "random"}  # 4 x 4 cells of 64 channels
GENERATOR = {
    "kind": "diffusion", "in_channels": 6, "size": 4, "width": 32, "depth": 2, "heads": 2, "num_classes": 3,
    "time_runs": "to_noise", "norm": "layer", "mlp": "gelu", "rope": False, "times": "uniform", "cosine_weight": 0.0,
    "token_dim": 64, "align_depth": 1, "align_dims": [64], "align_hidden": 32, "align_encoder": ENCODER,
}  # fmt: skip


@pytest.fixture
def place(tmp_path):
    images = [photo.resize((40, 36)) for photo in photographs()]
    for split, count in (("train", 16), ("val", 5)):
        records = [Record(jpeg(images[i % 8].rotate(9 * i)), i % 3, f"{i}.jpg") for i in range(count)]
        write_records(tmp_path / f"{split}_lmdb", records, classes=["a", "b", "c"])
    vfmtok.save_pretrained(tiny_vfmae.tokenizer(), tmp_path / "tokenizer")
    return tmp_path


def trained(place, name, **sections):
    data = {"code_path": None, "path": str(place / "train_lmdb"), "val_path": str(place / "val_lmdb")}
    data["vq_ckpt"] = str(place / "tokenizer")
    sections = {"generator": GENERATOR, "data": data, "pictures": {"every": 0}, **sections}
    train_generator(small_recipe(place, name, **sections), ALONE)
    return place / name


def test_it_trains_and_continues_bit_for_bit(place):
    whole = trained(place, "whole")
    for name in ("mse", "token", "align"):
        assert len(logged(whole, f"loss/{name}")) == 12
    align = logged(whole, "loss/align")
    assert align[12] < align[1] < 0.5  # cosines grow: the features of a random encoder are much alike
    trained(place, "cut", optimizer={"steps": 6}, run={"save_every": 3})
    cut = trained(place, "cut")
    assert_same(final(whole), final(cut))
    assert logged(whole, "validation/loss")[12] == logged(cut, "validation/loss")[12]
    dit = vfmtok.from_pretrained(whole, "generator")
    assert not any("features" in name for name in dit.state_dict())
    latents = vfmtok.generate(dit, torch.tensor([0, 2]), steps=3)
    assert latents.shape == (2, 6, 4, 4) and latents.isfinite().all()


def test_the_terms_are_those_of_the_encoder_s_features(place):
    dit = vfmtok.build_generator(small_recipe(place, generator=GENERATOR).generator)
    dit.begin_run(1)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    seen = []
    dit.register_forward_pre_hook(lambda module, given: seen.append(given))
    terms = dit.eval().loss(torch.randn(3, 6, 4, 4), torch.tensor([0, 1, 2]), Draws(0, torch.arange(3)), images)
    features = dit.features.encoder.network.with_class_token(images.float() / 127.5 - 1)[-1]
    t = seen[0][1][:, None]
    noise = (seen[0][3] - (1 - t) * features[:, 0]) / t
    assert noise.mean().abs() < 0.3 and noise.std().item() == pytest.approx(1, abs=0.2)
    velocity_of_a_new_network = 0
    token = 0.03 * (velocity_of_a_new_network - (noise - features[:, 0])).square().mean()
    assert terms["token"].item() == pytest.approx(token.item(), rel=1e-3)


def test_what_does_not_fit_is_one_line(place):
    with pytest.raises(ConfigError, match="token_dim must be the encoder's width, 64"):
        trained(place, "wide", generator={**GENERATOR, "token_dim": 32})
    with pytest.raises(ConfigError, match="align_encoder is missing"):
        trained(place, "none", generator={**GENERATOR, "align_encoder": None})
    with pytest.raises(ConfigError, match="2 x 2 cells, as many"):
        trained(place, "cells", generator={**GENERATOR, "patch": 2})
    write_latent_cache(place / "train")
    with pytest.raises(ConfigError, match="learns from images"):
        train_generator(small_recipe(place, "cache", generator={**GENERATOR, "in_channels": 4}), ALONE)
