"""vqgan_test.py and what it calls: the numbers against a plain loop, shared among processes, interrupted, and wrong."""

import csv
import io
import json
from functools import partial

import numpy as np
import pytest
import ranks
import tiny_models
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tiny_models import BAD, COUNT, WORLD, run_script, values
from tokenizers.vfm_vae.tiny import tiny
from torchvision import transforms

import vfmtok
from vfmtok import distributed
from vfmtok.code import Ids, Latents, Segment
from vfmtok.data.transforms import EvaluationCrop, to_unit_range
from vfmtok.errors import ConfigError, DataError, SharedError
from vfmtok.evaluation import jobs
from vfmtok.evaluation.reconstruction import evaluate_reconstruction
from vfmtok.evaluation.reconstruction_numbers import PIXEL_NAMES, FinishedBlocks, Measures, all_numbers
from vfmtok.evaluation.reference_file import Reference
from vfmtok.evaluation.sampling_points import picture_of_points
from vfmtok.generators.counter_random import Draws
from vfmtok.losses.structural import ssim_loss
from vfmtok.metrics.frechet import Gaussian
from vfmtok.pictures.reconstruction import colour_of_error
from vfmtok.tokenizers.vfmtok.model import to_pixels

GOOD = [index for index in range(COUNT) if index != BAD]
SIZE = 48


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_models.tokenizer()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return tiny_models.write_dataset(tmp_path_factory.mktemp("records"))


def evaluate(tokenizer, records, folder, measures=None, **options):
    options = {"size": SIZE, "batch": 5, "num_workers": 0, **options}
    return evaluate_reconstruction(tokenizer, records, folder, WORLD, measures or Measures(), **options)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def plain(tokenizer, records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return folder, evaluate(tokenizer, records, folder)


def test_numbers_are_those_of_a_plain_loop(tokenizer, records, tmp_path):
    psnr, ssim, flattering, ids = [], [], [], []
    for index in GOOD:
        image = to_unit_range(EvaluationCrop(32)(records[index].image))[None]
        ids.append(tokenizer.encode(image).ids)
        original = to_pixels(image, SIZE)[0].numpy()
        decoded = tokenizer.decode_to_uint8(ids[-1], SIZE)[0].numpy()
        psnr.append(peak_signal_noise_ratio(original, decoded))
        ssim.append(structural_similarity(original / 255, decoded / 255, channel_axis=-1, data_range=1))
        flattering.append(structural_similarity(original / 255, decoded / 255, channel_axis=-1, data_range=2))
    found = values(evaluate(tokenizer, records, tmp_path, batch=1))
    assert found["PSNR"] == pytest.approx(np.mean(psnr), rel=1e-6)
    assert found["SSIM"] == pytest.approx(np.mean(ssim), rel=1e-6)
    assert found["SSIM (data range 2)"] == pytest.approx(np.mean(flattering), rel=1e-6)
    counts = np.bincount(torch.cat(ids).flatten().numpy(), minlength=64)
    p = counts[counts > 0] / counts.sum()
    assert found["codebook usage"] == pytest.approx(100 * (counts > 0).mean())
    assert found["codebook perplexity"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert set(found) == {"PSNR", "SSIM", "SSIM (data range 2)", "codebook usage", "codebook perplexity"}


def test_pillow_resizes_both_sides_as_uint8(tokenizer, records, plain, tmp_path):
    """Hita's protocol: pixels at the tokenizer's size first, then Pillow's default filter, of both sides."""
    psnr = []
    for index in GOOD:
        image = to_unit_range(EvaluationCrop(32)(records[index].image))[None]
        both = to_pixels(image, 32), tokenizer.decode_to_uint8(tokenizer.encode(image).ids, 32)
        small = [np.asarray(Image.fromarray(side[0].numpy()).resize((SIZE, SIZE))) for side in both]
        psnr.append(peak_signal_noise_ratio(*small))
    results = evaluate(tokenizer, records, tmp_path, Measures(resize="pillow"))
    assert values(results)["PSNR"] == pytest.approx(np.mean(psnr), rel=1e-6)
    assert values(results)["PSNR"] != values(plain[1])["PSNR"]
    assert "Pillow" in results["numbers"]["PSNR"]["protocol"]
    with pytest.raises(DataError, match="another resize"):
        evaluate(tokenizer, records, tmp_path)
    before = tmp_path / "before"  # a finished one that says nothing of it, as those of version 0.2
    before.mkdir()
    results["job"]["resize"] = "bicubic"
    (before / "results.json").write_text(json.dumps({**results, "job": _without(results["job"], "resize")}))
    assert values(evaluate(tokenizer, records, before)) == values(results)


def test_the_protocol_of_vfm_vae(records, tmp_path):
    """torchvision's crops, latents drawn by (seed, record), pixels by truncating 255 times the image in [0,1]."""
    model, found = tiny(), {"PSNR": [], "SSIM (Gaussian)": []}
    cut = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64), transforms.PILToTensor()])
    for index in GOOD:
        original = cut(Image.open(io.BytesIO(records[index].image)).convert("RGB"))
        posterior = model.encode(original[None] / 127.5 - 1).posterior
        noise = Draws(0, torch.tensor([index])).normal("posterior", posterior.mean.numel()).view_as(posterior.mean)
        decoded = model.decode(posterior.mean + (posterior.logvar / 2).exp() * noise)[0].detach()
        pixels = (255 * ((decoded + 1) / 2).clamp(0, 1)).to(torch.uint8)
        found["PSNR"].append(peak_signal_noise_ratio(original.numpy(), pixels.numpy()))
        both = (image[None] / 127.5 - 1 for image in (pixels, original))
        found["SSIM (Gaussian)"].append(1 - ssim_loss(*both).item())
    results = evaluate(model, records, tmp_path, Measures(protocol="vfm-vae"), size=64)
    assert {name: values(results)[name] for name in found} == pytest.approx(
        {name: np.mean(each) for name, each in found.items()}, rel=1e-5, abs=2e-6
    )
    assert all("latents sampled" in results["numbers"][name]["protocol"] for name in found)
    with pytest.raises(DataError, match="another pixel protocol"):
        evaluate(model, records, tmp_path, size=64)


def _without(tree: dict, key: str) -> dict:
    return {name: value for name, value in tree.items() if name != key}


def test_the_folder_holds_every_image_once_and_pictures(plain):
    folder, results = plain
    assert json.loads((folder / "results.json").read_text()) == results
    assert results["notes"] == [f"1 bad records skipped: {BAD}"]
    rows = list(csv.DictReader((folder / "images.csv").open()))
    assert [int(row["record"]) for row in rows] == GOOD and [row["class"] for row in rows][:4] == ["a", "b", "c", "a"]
    by_psnr = sorted(rows, key=lambda row: float(row["psnr"]))
    assert results["pictures"]["worst"][0] == int(by_psnr[0]["record"])
    assert results["pictures"]["best"][0] == int(by_psnr[-1]["record"])
    assert sorted(path.name for path in folder.iterdir()) == [
        *("images.csv", "reconstructions.png", "results.json", "sampling_points.png")
    ]
    for name in ("reconstructions", "sampling_points"):
        assert len(np.unique(np.asarray(Image.open(folder / f"{name}.png")).reshape(-1, 3), axis=0)) > 500


def test_an_interrupted_evaluation_continues_with_the_same_numbers(tokenizer, records, plain, tmp_path):
    class Cut(Exception):
        pass

    calls = []

    def count(attention, inputs):
        calls.append(1)
        if len(calls) == 2 * len(tokenizer.sampler.layers) + 1:  # in the third of three blocks
            raise Cut

    handles = [layer.cross_attention.register_forward_pre_hook(count) for layer in tokenizer.sampler.layers]
    with pytest.raises(Cut):
        evaluate(tokenizer, records, tmp_path)
    for handle in handles:
        handle.remove()
    done = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert done == ["00000000-00000005.npz", "00000005-00000010.npz"]
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "parts").iterdir())]
    (tmp_path / "parts/00000010-00000014.npz.123.part").write_bytes(b"PK")  # what a kill may leave
    with pytest.raises(DataError, match="with another tokenizer"):
        evaluate(
            type(tokenizer)(tiny_models.vfmtok.load_config(tiny_models.CONFIG, ["image_size=64"])), records, tmp_path
        )
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "parts").glob("*.npz"))] == before
    assert evaluate(tokenizer, records, tmp_path)["numbers"] == plain[1]["numbers"]
    assert evaluate(tokenizer, records, tmp_path)["numbers"] == plain[1]["numbers"]  # finished: told again


def test_batches_change_nothing_but_rounding(tokenizer, records, plain, tmp_path):
    """Sums in another order move a value of 10,000 across a whole number, and truncation makes that a grey level."""
    for batch in (2, 64):
        found = evaluate(tokenizer, records, tmp_path / f"{batch}", batch=batch)
        assert values(found) == pytest.approx(values(plain[1]), rel=1e-6, abs=2e-6)


def test_what_is_left_out_is_said(tokenizer, inception, tmp_path):
    images = [tiny_models.Record(tiny_models.encoded(i, (40, 36)), 0, f"{i}") for i in range(5)]
    tiny_models.write_records(tmp_path / "few", images)
    results = evaluate(tokenizer, tiny_models.RecordDataset(tmp_path / "few"), tmp_path / "out", Measures(inception))
    assert "rFID" in results["numbers"] and "rIS" not in results["numbers"]
    assert "rIS is left out: 10 splits need as many images" in results["notes"]
    assert "weights unknown" in results["numbers"]["rFID"]["protocol"]


def test_a_number_that_fails_leaves_the_others(tokenizer, records, inception, tmp_path):
    broken = Gaussian(torch.zeros(2048, dtype=torch.float64), -torch.eye(2048, dtype=torch.float64))
    reference = Reference(broken, None, {}, "ab" * 32, name="broken.npz")
    results = evaluate(tokenizer, records, tmp_path, Measures(inception, reference))
    assert "rFID" not in results["numbers"] and results["numbers"].keys() >= {"rIS", "PSNR", "codebook usage"}
    assert any("rFID is left out: rFID: a covariance has the negative eigenvalue" in t for t in results["warnings"])


def test_other_lpips_weights_are_another_evaluation(tokenizer, records, tmp_path):
    def with_weights(digest):
        return Measures(lpips=lambda x, y: (x - y).abs().mean((1, 2, 3)), lpips_sha256=digest)

    found = evaluate(tokenizer, records, tmp_path, with_weights("397923af" * 8))
    assert found["numbers"]["LPIPS"]["protocol"].endswith("VGG16, weights 397923af")
    with pytest.raises(DataError, match="with another LPIPS"):
        evaluate(tokenizer, records, tmp_path, with_weights("ab" * 32))


def test_other_tokens_are_drawn_of_what_is_finished(tokenizer, records, tmp_path):
    evaluate(tokenizer, records, tmp_path)
    points, others = (tmp_path / name for name in ("sampling_points.png", "reconstructions.png"))
    before, untouched = points.read_bytes(), others.stat().st_mtime_ns
    evaluate(tokenizer, records, tmp_path, shown_tokens=(0, 15))
    assert points.read_bytes() != before and others.stat().st_mtime_ns == untouched
    evaluate(tokenizer, records, tmp_path, shown_tokens=(5, 6, 9, 10))  # those it takes by itself
    assert points.read_bytes() == before


def test_points_that_can_not_be_drawn_are_told_at_once(tokenizer, records, tmp_path):
    with pytest.raises(ConfigError, match="of the tokens 0 to 15"):
        evaluate(tokenizer, records, tmp_path / "out", shown_tokens=(16,))
    windowed = vfmtok.VFMTok(vfmtok.load_config(tiny_models.CONFIG, ["sampler.attention=windowed"])).eval()
    with pytest.raises(ConfigError, match="have no sampling points"):
        evaluate(windowed, records, tmp_path / "out", shown_tokens=(1,))
    assert not (tmp_path / "out").exists()


def test_a_damaged_part_ends_all_processes_alike(tmp_path):
    """The first process has the good part: it must not begin the sums while the second one can't read."""
    jobs.begin(tmp_path, {})
    store, values = jobs.Blocks(tmp_path, 4), {name: np.ones(2) for name in PIXEL_NAMES}
    ids, pool = np.zeros((2, 16), np.int32), np.ones((2, 2048), np.float32)
    features = {"pool": pool, "original_pool": pool, "probabilities": pool[:, :1008]}
    for rows in (np.arange(2), np.arange(2, 4)):
        store.write(rows, {"indices": rows, "ids": ids, **values, **(features if rows[0] == 0 else {})})
    for told in ranks.run(partial(_damaged, tmp_path), tmp_path):
        assert "00000002-00000004.npz" in told and "delete it and run again" in told


def test_every_codebook_has_its_usage(tmp_path):
    """Two tokens without a place, of 4 codes, and four on a grid, of 8; latents have none."""
    jobs.begin(tmp_path, {})
    store, values = jobs.Blocks(tmp_path, 2), {name: np.ones(2) for name in PIXEL_NAMES}
    ids = np.array([[0, 1, 0, 1, 2, 3], [2, 3, 4, 5, 6, 6]], np.int32)
    store.write(np.arange(2), {"indices": np.arange(2), "ids": ids, **values})
    code = Ids((Segment(2, 4), Segment(4, 8, (2, 2))))
    found = all_numbers(FinishedBlocks(store, WORLD), code, Measures(), WORLD, SIZE).numbers
    usage = {number.name: number.value for number in found if "codebook" in number.name}
    assert usage["codebook usage of segment 1"] == 100 and usage["codebook usage of segment 2"] == 100 * 7 / 8
    assert usage["codebook perplexity of segment 1"] == pytest.approx(4)
    found = all_numbers(FinishedBlocks(store, WORLD), Latents((4, 2, 2)), Measures(), WORLD, SIZE).numbers
    assert not any("codebook" in number.name for number in found)


def _damaged(folder, rank):
    world = distributed.World(rank, 2, torch.device("cpu"))
    measures = Measures(inception=torch.nn.Identity())  # is asked for its protocol after all was read
    with pytest.raises(SharedError) as caught:
        all_numbers(FinishedBlocks(jobs.Blocks(folder, 4), world), tiny_models.tokenizer().code, measures, world, SIZE)
    return str(caught.value)


def test_too_many_bad_records_are_an_error(tokenizer, tmp_path):
    images = [tiny_models.encoded(i, (40, 36)) for i in range(6)]
    bad = [tiny_models.Record(images[i][: 60 if i < 2 else None], 0, f"{i}") for i in range(6)]
    tiny_models.write_records(tmp_path / "bad", bad)
    with pytest.raises(DataError, match=r"2 of the 6 records .* are bad"):
        evaluate(tokenizer, tiny_models.RecordDataset(tmp_path / "bad"), tmp_path / "out")


def test_same_size_pixels_are_the_originals():
    pixels = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_pixels(to_unit_range(pixels), 20).permute(0, 3, 1, 2), pixels)


def test_error_colours():
    zero, error = np.zeros((1, 1, 3, 3), np.uint8), np.zeros((1, 1, 3, 3), np.uint8)
    error[0, 0, 1], error[0, 0, 2] = 64, (96, 0, 0)  # a mean of 64, and of 32: half of the scale
    assert colour_of_error(zero, error).tolist() == [[[[0, 0, 0], [255, 255, 255], [255, 127, 0]]]]


def test_sampling_points_are_drawn_where_they_are(tokenizer):
    torch.manual_seed(0)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    points = tokenizer.sampling_points(images)[0]
    assert points.layer == f"layer 1 of {len(tokenizer.sampler.layers)}"
    locations, weights = points.locations.unflatten(2, (4, 3, 2)), points.weights.unflatten(2, (4, 6))
    assert torch.allclose(weights.sum(-1), torch.ones(1, 16, 4))  # of every head
    # A new sampler looks in compass directions around its reference points: head 0 to the right.
    grids = torch.tensor([width for _, width in tokenizer.sampler.grids])
    home = tokenizer.sampler.references[5]
    assert torch.allclose(locations[0, 5, 0, :, 0], home + torch.stack([1 / grids, 0 * grids], dim=-1), atol=1e-6)
    picture = picture_of_points(tokenizer, images, (5, 10))
    found = np.asarray(picture)
    for token, colour in ((5, (255, 59, 48)), (10, (52, 199, 89))):
        x, y = tokenizer.sampler.references[token].tolist()
        column, row = 20 + round(x * 288), 82 + round(y * 288)
        assert np.abs(found[row, column].astype(int) - colour).max() < 8
    with pytest.raises(ConfigError, match="tokens 0 to 15"):
        picture_of_points(tokenizer, images, (16,))


@pytest.mark.slow  # tests/evaluation/test_ranks.py has its parts
def test_the_script_in_two_processes(tokenizer, records, inception_file, inception, tmp_path):
    """Every published flag; and all numbers of two processes against those of one."""
    flags = [*tiny_models.write_models(tmp_path), "--vq-model", "VQ-8", "--image-size", 32, "--z-channels", 64]
    flags += ["--codebook-size", 64, "--codebook-slots-embed-dim", 8]
    flags += ["--set", "pixel_decoder.multipliers=[2,1,1]", "--anno-file", records.path, "--num_workers", 0]
    flags += ["--output_dir", tmp_path / "two", "--batch-size", 5, "--no-lpips", "--image-size-eval", SIZE]
    done = run_script("vqgan_test.py", *flags, "--inception", inception_file, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two/results.json").read_text())
    one = evaluate(tokenizer, records, tmp_path / "one", Measures(inception))
    assert values(two) == pytest.approx(values(one), rel=1e-6) and values(one)["rFID"] > 0  # of equal batches
    assert any("13 samples" in text and "BIASED" in text for text in two["warnings"])
    for text in ("rFID", "rIS", "the same 13 originals", "LPIPS is left out: --no-lpips", "WARNING: rFID"):
        assert text in done.stdout
