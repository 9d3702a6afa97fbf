"""`vfmtok import-codes`: LlamaGen's folders, written here as its script writes them, as a token cache of ours."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

import vfmtok
from vfmtok import cli
from vfmtok.data.code_cache import CodeCache
from vfmtok.weights.hashing import tokenizer_hash

SIDE, CODES, IMAGES, WORLD = 4, 48, 10, 4  # tokens per side, codebook, images, processes of the extraction
LABELS = [0, 0, 0, 1, 1, 2, 2, 2, 2, 2]


def crops_of(index: int, crop_range: float) -> list[np.ndarray]:
    """The ids of an image's five crops: a place each, so that mirroring shows. A stand-in for pixels."""
    rng = np.random.default_rng([index, round(crop_range * 100)])
    return [rng.integers(0, CODES, (SIDE, SIDE)) for _ in range(5)]


def published_ten_crops(index: int, crop_range: float) -> np.ndarray:
    """torchvision's TenCrop: four corners and the centre, then the same of the mirrored picture, whose top left corner
    shows the mirror image of the top right one."""
    top_left, top_right, bottom_left, bottom_right, centre = crops_of(index, crop_range)
    mirrored = [top_right, top_left, bottom_right, bottom_left, centre]
    views = [top_left, top_right, bottom_left, bottom_right, centre, *(crop[:, ::-1] for crop in mirrored)]
    return np.stack([view.reshape(-1) for view in views])[None].astype(np.int64)  # (1,10,K)


def write_folder(root: Path, crop_range: float | None, size: int = 16) -> Path:
    """As the distributed extraction leaves it: padded to a multiple of WORLD by starting over."""
    for name in ("codes", "labels"):
        (root / f"imagenet{size}_{name}").mkdir(parents=True)
    for n in range(-(-IMAGES // WORLD) * WORLD):
        image = n % IMAGES
        if crop_range is None:
            centre = crops_of(image, 1.0)[4]
            codes = np.stack([centre.reshape(-1), centre[:, ::-1].reshape(-1)])[None].astype(np.int64)
        else:
            codes = published_ten_crops(image, crop_range)
        np.save(root / f"imagenet{size}_codes/{n}.npy", codes)
        np.save(root / f"imagenet{size}_labels/{n}.npy", np.array([LABELS[image]], np.int64))
    return root


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A saved VQGAN of 4x4 tokens; what --vq-ckpt names."""
    torch.manual_seed(0)
    decoder = {"channels": 32, "multipliers": (1, 1, 1), "res_blocks": 1}
    config = vfmtok.config.config_from_dict(
        {
            "image_size": 16, "z_channels": 32,
            "encoder": {"kind": "cnn", "channels": 32, "multipliers": [1, 1, 1], "res_blocks": 1},
            "quantizer": {"kind": "cosine", "codebook_size": CODES, "code_dim": 8}, "pixel_decoder": decoder,
        },
        vfmtok.tokenizers.TOKENIZERS["vqgan"].config,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("vqgan")
    model = vfmtok.build_tokenizer(config).eval()
    vfmtok.save_pretrained(model, folder)
    return folder, tokenizer_hash(model)


def imported(tokenizer, out: Path, *arguments: object) -> int:
    return cli.main(["import-codes", str(out), "--vq-ckpt", str(tokenizer[0]), *map(str, arguments)])


def test_both_ten_crops_become_twenty_views(tokenizer, tmp_path, capsys):
    """View 5+j of ours is the mirror image of view j, and the files that pad the end are gone."""
    for crop_range, name in ((1.1, "flip_ten_crop"), (1.05, "flip_ten_crop_105")):
        write_folder(tmp_path / name, crop_range)
    arguments = ("--ten-crop", 1.1, tmp_path / "flip_ten_crop", "--ten-crop", 1.05, tmp_path / "flip_ten_crop_105")
    assert imported(tokenizer, tmp_path / "cache", *arguments) == 0
    assert capsys.readouterr().out.count("2 files at the end repeat the first images") == 2
    cache = CodeCache(tmp_path / "cache")
    assert (len(cache), cache.num_views, cache.num_tokens) == (IMAGES, 20, SIDE**2)
    assert cache.labels.tolist() == LABELS and cache.classes == ["0", "1", "2"]
    names = cache.metadata["views"]
    assert names[0] == "1.05 top left" and names[16] == "1.1 top right flipped" and names[19] == "1.1 centre flipped"
    for index in range(IMAGES):
        for half, crop_range in enumerate((1.05, 1.1)):
            for place, crop in enumerate(crops_of(index, crop_range)):
                ids = cache[index, 10 * half + place][0].reshape(SIDE, SIDE)
                mirror = cache[index, 10 * half + 5 + place][0].reshape(SIDE, SIDE)
                assert np.array_equal(ids, crop) and np.array_equal(mirror, crop[:, ::-1])
    assert cache.metadata["tokenizer_hash"] == tokenizer[1] and cache.code.grid == (SIDE, SIDE)
    assert (tmp_path / "cache/contact_sheet.png").is_file()
    assert cache.metadata["precision"] is None  # which the folders do not say
    metadata = tmp_path / "cache/cache.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "precision": "fp32"}))  # older imports said so
    assert imported(tokenizer, tmp_path / "cache", *arguments) == 0
    assert "already complete" in capsys.readouterr().out


def test_the_crop_and_its_mirror_image_with_names_of_classes(tokenizer, tmp_path):
    write_folder(tmp_path / "flip", None)
    data = tiny_models.write_dataset(tmp_path / "data").path
    assert imported(tokenizer, tmp_path / "cache", "--flip", tmp_path / "flip/imagenet16_codes", "--dataset", data) == 0
    cache = CodeCache(tmp_path / "cache")
    assert cache.classes == ["a", "b", "c"] and cache.metadata["views"] == ["centre", "centre flipped"]
    assert np.array_equal(cache[7, 1][0].reshape(SIDE, SIDE), crops_of(7, 1.0)[4][:, ::-1])


def test_the_training_takes_it_and_says_what_the_files_are(tokenizer, tmp_path):
    from vfmtok.errors import DataError

    write_folder(tmp_path / "flip", None)
    for path in (tmp_path / "flip", tmp_path / "flip/imagenet16_codes"):
        with pytest.raises(DataError, match=r"holds LlamaGen's code files: .* \(vfmtok import-codes\)"):
            CodeCache(path)


def spoil(root: Path, what: str) -> None:
    codes = root / "imagenet16_codes"
    if what == "missing":
        (codes / "3.npy").unlink()
    elif what == "no label":
        (root / "imagenet16_labels/5.npy").unlink()
    elif what == "shape":
        np.save(codes / "4.npy", np.zeros((1, 10, 9), np.int64))
    elif what == "floats":
        np.save(codes / "4.npy", np.zeros((1, 10, 16)))
    elif what == "id":
        np.save(codes / "4.npy", np.full((1, 10, 16), CODES))
    elif what == "cut":
        (codes / "4.npy").write_bytes(b"\x93NUMPY")
    elif what == "other end":
        np.save(codes / "11.npy", published_ten_crops(5, 1.1))
    elif what == "order":
        np.save(root / "imagenet16_labels/4.npy", np.array([0]))
    elif what == "label":
        np.save(root / "imagenet16_labels/4.npy", np.array([0, 1]))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "imagenet16_codes lacks 1 of 12 files: 3.npy"),
        ("no label", "imagenet16_labels lacks 1 of 12 files: 5.npy"),
        ("shape", "4.npy holds (1, 10, 9) int64, not (1, 10, 16) integers (10 views of 16 tokens)"),
        ("floats", "4.npy holds (1, 10, 16) float64, not"),
        ("id", "image 4 of"),
        ("cut", "cannot read"),
        ("other end", "11.npy comes after all 10 images and does not repeat image 1"),
        ("order", "comes after all 4 images and does not repeat image 0"),
        ("label", "4.npy holds (2,) int64, not one label"),
    ],
)
def test_whatever_is_odd_is_one_line(tokenizer, tmp_path, capsys, what, message):
    spoil(write_folder(tmp_path / "codes", 1.1), what)
    assert imported(tokenizer, tmp_path / "cache", "--ten-crop", 1.1, tmp_path / "codes") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and error.startswith("vfmtok import-codes: error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name what the views are"),
        (("--flip", "codes"), "not (1, 2, 16) integers (2 views of 16 tokens)"),
        (("--ten-crop", "wide", "codes"), "takes a number and a folder"),
        (("--ten-crop", 1.1, "codes", "--count", 13), "holds 12 of 13 images"),
        (("--ten-crop", 1.1, "codes", "--count", 9), "9.npy comes after all 9 images and does not repeat image 0"),
        (("--ten-crop", 1.1, "codes", "--count", 12), "label 0 of image 10 is below"),
        (("--ten-crop", 1.1, "other"), "is of images at 32 px, the tokenizer takes 16"),
        (("--ten-crop", 1.1, "."), "must hold one folder of codes at 16 px"),
    ],
)
def test_wrong_usage_is_one_line(tokenizer, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "codes", 1.1)
    write_folder(tmp_path / "other", 1.1, size=32)
    assert imported(tokenizer, tmp_path / "cache", *arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
