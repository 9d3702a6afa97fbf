"""The images of alignment against the published tool's; features of tokenizers, encoders, generators; the command."""

import json

import golden_rule
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_gpt import random_gpt
from tiny_vae import FAMILIES, TinyVAE, TinyVAEConfig  # noqa: F401 (for the fixture families_of_this_file)

import vfmtok
from vfmtok import cli
from vfmtok.data.dataset_folder import open_split
from vfmtok.encoders.config import EncoderConfig
from vfmtok.errors import ConfigError
from vfmtok.evaluation.alignment import (
    aligned,
    encoder_source,
    generator_source,
    read_features,
    tokenizer_source,
    value_of,
)
from vfmtok.evaluation.alignment_conditions import ANGLES, CONDITIONS, DISTURBED, disturbed
from vfmtok.generators.diffusion.config import DiTConfig
from vfmtok.metrics.neighbour_alignment import cknna, prepared
from vfmtok.pretrained.saving import save_pretrained

pytestmark = pytest.mark.filterwarnings("ignore:the frozen encoder")


@pytest.fixture(scope="module")
def golden():
    return golden_rule.load("vfmvae/alignment.npz")


# ---- images --------------------------------------------------------------------------------


def test_published_turns_and_scales(golden):
    """Of a picture in which every place is another colour, so that it says how it was turned."""
    plain = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    for number, (angle, scale) in enumerate(zip(golden["rotation"], golden["scale"], strict=True)):
        turned, found = disturbed(plain, number, "equivariance")
        assert found == scale
        assert np.array_equal(turned, np.rot90(plain, ANGLES.index(angle)))
    image = golden["noise_input_u8"]
    number = next(n for n in range(64) if disturbed(image, n, "equivariance")[1] == 1 and golden["rotation"][n] == 90)
    assert np.array_equal(disturbed(image, number, "equivariance")[0], golden["rotated_90"])


@pytest.mark.parametrize(("condition", "published"), [("noise_0.05", "noisy_050"), ("noise_0.20", "noisy_200")])
def test_published_noise(golden, condition, published):
    assert np.array_equal(disturbed(golden["noise_input_u8"], 3, condition)[0], golden[published])


# ---- features ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(sample_set):
    return open_split(sample_set, "val")


def images_of(records, size: int, count: int) -> list[np.ndarray]:
    from vfmtok.data.order import evenly_spaced
    from vfmtok.data.transforms import EvaluationCrop

    crop = EvaluationCrop(size)
    return [crop(records[int(i)].image, 0, int(i)).permute(1, 2, 0).numpy() for i in evenly_spaced(count, len(records))]


def unit(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None] / 127.5 - 1


def test_features_of_a_tokenizer_are_means_image_by_image(tiny_tokenizer, records):
    tokenizer = tiny_tokenizer().eval()
    source = tokenizer_source("tiny", tokenizer)
    assert list(source.what) == ["latents", "region tokens", "encoder"] and source.sees_smaller
    found = read_features(source, records, 7, conditions=("clean", "equivariance", "noise_0.10"))
    pixels, scales = images_of(records, 32, 7), set()
    for number, image in enumerate(pixels):
        for condition in ("clean", "equivariance", "noise_0.10"):
            seen, scale = disturbed(image, number, condition)
            scales.add(scale)
            batch = unit(seen)
            if scale < 1:
                size = (int(32 * scale),) * 2
                batch = torch.nn.functional.interpolate(batch, size, mode="bilinear", antialias=True)
            with torch.no_grad():
                encoding = tokenizer.encode(batch)
            wanted = {
                "latents": encoding.codes[0].mean(dim=0),
                "region tokens": encoding.region_tokens[0].mean(dim=0),
                "encoder": encoding.features[-1][0].mean(dim=0),
            }
            for what, row in wanted.items():
                torch.testing.assert_close(found[what, condition][number], row, rtol=1e-4, atol=1e-5)
    assert len(scales) > 1


def test_features_of_an_encoder_and_a_generator(tiny_tokenizer, records):
    config = EncoderConfig(name="test_vit", image_size=64, weights="random")
    source = encoder_source("vit", config, torch.device("cpu"))
    found = read_features(source, records, 3, conditions=("clean",))
    assert found["encoder", "clean"].shape == (3, 64) and found["encoder", "clean"].std() > 0

    tokenizer = tiny_tokenizer().eval()
    gpt = random_gpt(vocab_size=tokenizer.code.largest_codebook, num_tokens=tokenizer.code.num_tokens)
    with pytest.raises(ConfigError, match="has blocks 1 to"):
        generator_source("gpt", tokenizer, gpt, [99])
    source = generator_source("gpt", tokenizer, gpt, [1, len(gpt.layers)])
    found = read_features(source, records, 3, conditions=("clean",))
    with torch.no_grad():
        ids = tokenizer.encode(torch.cat([unit(image) for image in images_of(records, 32, 3)])).ids
        kept = []
        hook = gpt.layers[0].register_forward_hook(lambda module, inputs, output: kept.append(output))
        gpt(torch.full((3,), gpt.null_class), ids[:, :-1])
        hook.remove()
    torch.testing.assert_close(found["block 1", "clean"], kept[0].mean(dim=1), rtol=1e-4, atol=1e-5)
    assert found[f"block {len(gpt.layers)}", "clean"].shape == found["block 1", "clean"].shape


@pytest.mark.parametrize("token_dim", [None, 6])
def test_features_of_latents_and_of_a_diffusion_model(records, token_dim):
    """Half way to noise that is the image's own, whatever the batch, without the class token; shrunk images are
    enlarged again for it."""
    torch.manual_seed(0)
    tokenizer = TinyVAE(TinyVAEConfig()).eval().requires_grad_(False)
    shape = {"in_channels": 4, "size": 8, "patch": 2, "width": 32, "depth": 3, "heads": 4, "num_classes": 3}
    dit = vfmtok.build_generator(DiTConfig(**shape, token_dim=token_dim)).eval().requires_grad_(False)
    for parameter in dit.parameters():  # zeros would leave the blocks without effect
        parameter.normal_(0, 0.2)
    latents = read_features(tokenizer_source("vae", tokenizer), records, 5, conditions=("clean", "equivariance"))
    first = torch.cat([unit(image) for image in images_of(records, 32, 5)])
    torch.testing.assert_close(latents["latents", "clean"], tokenizer.encode(first).latents.mean(dim=(2, 3)))

    source = generator_source("dit", tokenizer, dit, [2])
    found = read_features(source, records, 5, conditions=("clean", "equivariance"))
    assert found["block 2", "clean"].shape == found["block 2", "equivariance"].shape == (5, 32)
    kept = []
    hook = dit.layers[1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    alone = source.read(first[3:4], torch.tensor([3]))
    hook.remove()
    torch.testing.assert_close(found["block 2", "clean"][3:4], alone["block 2"], rtol=1e-4, atol=1e-5)
    assert kept[0].shape[1] == 16 + (token_dim is not None)
    torch.testing.assert_close(alone["block 2"], kept[0][:, -16:].mean(dim=1))
    assert not torch.allclose(alone["block 2"], source.read(first[3:4], torch.tensor([4]))["block 2"])


def test_entries_say_their_condition_n_and_k():
    random = torch.Generator().manual_seed(0)
    features = {
        name: {condition: torch.randn(30, 6, generator=random) for condition in CONDITIONS} for name in ("a", "b", "c")
    }
    entries = aligned(features, 3)
    assert all({"models", "metric", "condition", "value", "n", "k"} <= entry.keys() for entry in entries)
    assert {(entry["n"], entry["k"]) for entry in entries} == {(30, 3)}
    for first, second in (("a", "b"), ("b", "c")):
        values = [value_of(entries, second, first, "cknna", condition) for condition in CONDITIONS]
        wanted = [cknna(prepared(features[first][c]), prepared(features[second][c]), 3) for c in CONDITIONS]
        assert values == pytest.approx(wanted, abs=1e-12)
        assert value_of(entries, first, second, "se_cknna") == pytest.approx(np.mean(wanted[1:]))
    assert len(DISTURBED) == 5


# ---- the command ---------------------------------------------------------------------------


def run(*words) -> int:
    return cli.main(["alignment", *map(str, words), "--num-workers", "0"])


def test_one_file_and_one_picture(tiny_tokenizer, sample_set, tmp_path, capsys):
    save_pretrained(tiny_tokenizer().eval(), tmp_path / "tok")
    words = ("--data", sample_set, "--images", 14, "--neighbours", 3, "--out", tmp_path / "out")
    words += ("--tokenizer", f"ours={tmp_path / 'tok'}", "--encoder", "vit=test_vit@64", "--encoder-weights", "random")
    assert run(*words) == 0
    tree = json.loads((tmp_path / "out/alignment.json").read_text())
    models = ["ours: latents", "ours: region tokens", "ours: encoder", "vit"]
    assert list(tree["models"]) == models and tree["reference"] == "ours: encoder"
    assert len(tree["values"]) == 6 * (3 * len(CONDITIONS) + 1)
    assert {(entry["n"], entry["k"]) for entry in tree["values"]} == {(14, 3)}
    assert tree["conditions"].keys() == set(CONDITIONS)
    with Image.open(tmp_path / "out/alignment.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10
    assert "ours: region tokens" in capsys.readouterr().out


def test_bad_input_is_one_line(sample_set, tmp_path, capsys):
    vit = ("--encoder", "test_vit@64", "--encoder-weights", "random")
    for words, message in (
        ((), "alignment is of two models or more, here is none"),
        (vit, "alignment is of two models or more, here is test_vit@64"),
        ((*vit, "--encoder", "other=test_vit@32", "--neighbours", 12), "needs 13 images or more, got 12"),
        ((*vit, "--encoder", "test_vit@64"), "two models are called 'test_vit@64'"),
        ((*vit, "--encoder", "other=test_vit@big"), "the size behind @"),
        ((*vit, "--encoder", "other=test_vit@32", "--reference", "vit"), "there is no model 'vit'"),
        ((*vit, "--tokenizer", tmp_path / "nothing"), "nothing"),
        ((*vit, "--generator", tmp_path / "nothing"), "nothing"),
    ):
        assert run("--data", sample_set, "--images", 12, "--out", tmp_path / "out", *words) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert not (tmp_path / "out/alignment.json").exists()
