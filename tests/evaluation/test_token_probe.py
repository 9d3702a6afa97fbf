"""The L.P. column: whose tokens the probe sees, what it is tested on, and the flag that asks for it."""

import json

import pytest
import tiny_hita
import tiny_models
import torch
from tiny_models import BAD, COUNT, WORLD, run_script, values

from vfmtok.data.transforms import EvaluationCrop, to_unit_range
from vfmtok.decoders.vqgan import PixelDecoderConfig
from vfmtok.encoders.cnn import CNNEncoderConfig
from vfmtok.errors import DataError
from vfmtok.evaluation.token_probe import TokenProbe, token_vectors, vector_of
from vfmtok.metrics.probe import linear_probe
from vfmtok.quantizers.cosine import CosineConfig
from vfmtok.tokenizers.vqgan.config import VQGANConfig
from vfmtok.tokenizers.vqgan.model import VQGAN

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_models.tokenizer()


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    return tiny_models.write_dataset(tmp_path_factory.mktemp("val"))


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "train_lmdb"
    images = [tiny_models.Record(tiny_models.encoded(100 + i, (36, 40)), i % 3, f"{i}") for i in range(9)]
    tiny_models.write_records(folder, images, classes=["a", "b", "c"])
    return tiny_models.RecordDataset(folder)


def test_tokens_are_those_of_the_good_records(tokenizer, val):
    tokens, labels, _ = token_vectors(tokenizer, val, 4, 0, WORLD)
    good = [index for index in range(COUNT) if index != BAD]
    assert labels.tolist() == [index % 3 for index in good]
    crop = EvaluationCrop(tokenizer.config.image_size)
    for place, index in ((0, 0), (BAD, BAD + 1), (12, 13)):
        image = to_unit_range(crop(val[index].image))[None]
        expected = tokenizer.encode(image).region_tokens[0].double().mean(0)
        assert good[place] == index and torch.allclose(tokens[place].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_flag_in_two_processes(tokenizer, train, val, tmp_path):
    flags = [*tiny_models.write_models(tmp_path), "--anno-file", val.path, "--num_workers", 0, "--no-lpips", "--no-fid"]
    flags += ["--output_dir", tmp_path / "out", "--batch-size", 5, "--image-size-eval", 48]
    flags += ["--linear-probe", train.path.parent, "--probe-optimizer", "adamw"]
    done = run_script("vqgan_test.py", *flags, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    probe = TokenProbe(train)
    (x, labels, _), (val_x, val_labels, _) = (
        token_vectors(tokenizer, records, 5, 0, WORLD) for records in (train, val)
    )
    expected = linear_probe(x, labels, val_x, val_labels, 3, type(probe.recipe)("adamw"))
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert values(results)["L.P. top-1"] == pytest.approx(100 * expected.top1)
    assert values(results)["L.P. top-5"] == 100
    for text in ("13 images, 3 classes", "adamw, 90 epochs, batch 9,", "16 region tokens", "9 images of", "train_lmdb"):
        assert text in results["numbers"]["L.P. top-1"]["protocol"]


def test_sets_that_prove_nothing(tokenizer, val, tmp_path):
    with pytest.raises(DataError, match="tested on the images it learns from"):
        TokenProbe(val).check(tokenizer, val)
    content = [tiny_models.encoded(i, (40, 36)) for i in range(3)]
    tiny_models.write_records(tmp_path, [tiny_models.Record(c, 0, "") for c in content], classes=["a", "b", "x"])
    with pytest.raises(DataError, match="do not have the same classes"):
        TokenProbe(tiny_models.RecordDataset(tmp_path)).check(tokenizer, val)


def test_without_region_tokens_the_latents_stand_side_by_side():
    config = VQGANConfig(
        image_size=16, z_channels=32, encoder=CNNEncoderConfig(channels=32, multipliers=(1, 1), res_blocks=1),
        quantizer=CosineConfig(codebook_size=8, code_dim=4), pixel_decoder=PixelDecoderConfig(32, (1, 1), 1),
    )  # fmt: skip
    encoding = VQGAN(config).eval().encode(torch.rand(2, 3, 16, 16) * 2 - 1)
    vectors, what = vector_of(encoding)
    assert torch.equal(vectors, encoding.latents.reshape(2, 64 * 4)) and "(64, 4)" in what


def test_latents_of_several_codebooks_stand_side_by_side():
    tokenizer = tiny_hita.tokenizer()
    encoding = tokenizer.encode(torch.rand(2, 3, 32, 32) * 2 - 1)
    vectors, what = vector_of(encoding)
    assert torch.equal(vectors, torch.cat([part.flatten(1) for part in encoding.latents], dim=1))
    assert vectors.shape == (2, 6 * 6 + 16 * 4) and "and" in what
