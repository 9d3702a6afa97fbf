"""A tokenizer with two codebooks in the loop: both start at latents, are counted, and come back at a resume."""

import json
import shutil

import pytest
import tiny_hita
import torch

from vfmtok.config import config_from_dict, config_to_dict
from vfmtok.pretrained.loading import load_tokenizer
from vfmtok.tokenizers.hita.config import HitaConfig
from vfmtok.training.recipe import TokenizerRecipe
from vfmtok.weights.checkpoint import newest_checkpoint

CARE = ("codebook.continuous_steps=3", "codebook.kmeans=true", "codebook.revive=true", "codebook.window=24")


@pytest.fixture
def hita_recipe(tiny_recipe):
    def build(*overrides: str, name: str = "run", **changes) -> TokenizerRecipe:
        tree = config_to_dict(tiny_recipe(*CARE, *overrides, name=name))
        model = config_from_dict(tiny_hita.CONFIG | {"reconstruct_features": True} | changes, HitaConfig)
        return config_from_dict(tree | {"tokenizer": config_to_dict(model)}, TokenizerRecipe)

    return build


def log_of(folder):
    """The lines of its steps."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss/total" in line]


def test_both_codebooks_start_at_latents_and_stay_in_use(hita_recipe, train):
    folder = train(hita_recipe())
    last = log_of(folder)[-1]
    usages = [last["codebook/usage_0"], last["codebook/usage_1"]]
    assert last["codebook/usage"] == min(usages) > 0.2
    codebooks = [load_tokenizer(folder, prefer="model").code_vectors(segment) for segment in (0, 1)]
    fresh = tiny_hita.tokenizer()
    for segment, codebook in enumerate(codebooks):  # an untrained codebook is elsewhere
        assert len(torch.unique(codebook, dim=0)) > 16  # two codes may be revived by one latent
        assert not torch.allclose(codebook, fresh.code_vectors(segment), atol=0.1)


def test_a_continued_run_is_the_uninterrupted_one(hita_recipe, train):
    """From a checkpoint in the middle of a window, after both codebooks were started."""
    recipe = hita_recipe("optimizer.steps=9", "run.save_every=5")
    folder = train(recipe)
    whole = load_tokenizer(folder, prefer="model").state_dict()
    shutil.rmtree(newest_checkpoint(folder))
    (folder / "finished").unlink()
    assert newest_checkpoint(folder).name.endswith("5")
    parts = load_tokenizer(train(recipe), prefer="model").state_dict()
    assert newest_checkpoint(folder).name.endswith("9")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_any_timm_encoder_serves(hita_recipe, train):
    """One without a class token, of several levels: the last is read, all are compared by the perceptual loss."""
    encoder = {"name": "test_efficientnet", "image_size": 32, "levels": [2, 3, 4], "weights": "random"}
    losses = log_of(train(hita_recipe("optimizer.steps=2", "codebook.continuous_steps=1", encoder=encoder)))[-1]
    assert losses["loss/perceptual"] > 0 and losses["loss/feature"] > 0
