import io
import json
import shutil

import numpy as np
import pytest
import tiny_models
import torch
from image_makers import encoded, write_tree
from PIL import Image
from safetensors.torch import load_file, save_file

from vfmtok.cli import main
from vfmtok.data.transforms import EvaluationCrop, to_unit_range
from vfmtok.pretrained.loading import load_tokenizer

SIDE = 32  # of the tiny tokenizer's images


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_models.write_runs(tmp_path_factory.mktemp("runs"))[0]


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return load_tokenizer(checkpoint)


def _reconstruct(checkpoint, out, *inputs, code: int = 0) -> dict:
    assert main(["reconstruct", *map(str, inputs), "--vq-ckpt", str(checkpoint), "--out", str(out)]) == code
    return json.loads((out / "report.json").read_text())


def _ids(out) -> dict[str, np.ndarray]:
    with np.load(out / "ids.npz") as archive:
        return dict(zip(archive["names"].tolist(), archive["ids"], strict=True))


def _variants() -> dict[str, bytes]:
    """One picture in several guises, and others of other kinds."""
    upright = Image.open(io.BytesIO(encoded(3, (50, 41), "PNG")))
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned back for viewing
    files = {"upright.png": upright, "turned.webp": turned, "clear.png": upright.convert("RGBA")}
    files |= {
        "grey.gif": upright.convert("L"),
        "wide.bmp": upright.resize((300, 40)),
        "tiny.tif": upright.resize((5, 7)),
    }
    written = {}
    for name, image in files.items():
        buffer = io.BytesIO()
        options = {"exif": exif, "lossless": True, "exact": True} if name == "turned.webp" else {}
        image.save(buffer, Image.registered_extensions()[f".{name.split('.')[1]}"], **options)
        written[f"some/{name}"] = buffer.getvalue()
    return written


def test_ids_and_psnr_are_those_of_the_evaluation_crop(tmp_path, checkpoint, tokenizer):
    files = _variants()
    report = _reconstruct(checkpoint, tmp_path / "out", write_tree(tmp_path / "in", files))
    ids = _ids(tmp_path / "out")
    assert list(ids) == sorted(files) == [row["name"] for row in report["images"]]
    crops = torch.stack([EvaluationCrop(SIDE)(files[name]) for name in ids])
    expected = tokenizer.encode(to_unit_range(crops)).ids  # in one batch, as another rounds otherwise
    assert (np.stack(list(ids.values())) == expected.numpy()).all() and ids["some/grey.gif"].dtype == np.uint16
    decoded = tokenizer.decode_to_uint8(expected, SIDE).numpy().astype(float)
    errors = np.square(decoded - crops.permute(0, 2, 3, 1).numpy()).mean((1, 2, 3))
    assert [row["psnr"] for row in report["images"]] == pytest.approx(list(10 * np.log10(255**2 / errors)), abs=1e-9)
    assert report["psnr"] == pytest.approx(np.mean([row["psnr"] for row in report["images"]]))
    assert (ids["some/upright.png"] == ids["some/clear.png"]).all()  # opaque, all the same
    assert (ids["some/upright.png"] == ids["some/turned.webp"]).all()


def test_a_picture_holds_the_input_and_what_its_ids_decode_to(tmp_path, checkpoint, tokenizer):
    folder = write_tree(tmp_path / "in", {"a.png": encoded(0, (40, 32), "PNG"), "b.jpg": encoded(1)})
    one = ["--batch-size", "1"]  # everywhere, as another batch rounds otherwise
    _reconstruct(checkpoint, tmp_path / "out", folder, *one)
    assert (
        main(["reconstruct", str(tmp_path / "out/ids.npz"), "--vq-ckpt", str(checkpoint), "--out", str(tmp_path), *one])
        == 0
    )
    decoded = np.array(Image.open(tmp_path / "decoded/a.png"))
    ids = torch.from_numpy(_ids(tmp_path / "out")["a.png"].astype(np.int64))
    assert (decoded == tokenizer.decode_to_uint8(ids[None], SIDE)[0].numpy()).all()
    assert Image.open(tmp_path / "decoded/b.jpg.png").size == (SIDE, SIDE)
    crop = EvaluationCrop(SIDE)((folder / "a.png").read_bytes()).permute(1, 2, 0).numpy()
    picture = np.array(Image.open(tmp_path / "out/pictures/a.png"))
    for pixels in (crop, decoded):
        enlarged = pixels.repeat(8, 0).repeat(8, 1)  # 256 px
        windows = np.lib.stride_tricks.sliding_window_view(picture, enlarged.shape)[::1, ::1, 0]
        corners = np.argwhere((windows[..., 0, 0, :] == enlarged[0, 0]).all(-1))
        assert any((windows[y, x] == enlarged).all() for y, x in corners)


def test_damaged_files_are_skipped_listed_and_too_many_an_error(tmp_path, checkpoint, capsys):
    good = {f"{i:03d}.png": encoded(i, (32, 32), "PNG") for i in range(100)}
    folder = write_tree(tmp_path / "in", {**good, "050b.png": b"no image"})
    report = _reconstruct(checkpoint, tmp_path / "out", folder)
    assert len(report["images"]) == 100 and [entry["name"] for entry in report["skipped"]] == ["050b.png"]
    assert "warning: skipped 1 of 101" in capsys.readouterr().err
    write_tree(folder, {"000.png": b"", "100.png": encoded(5)[:100]})
    report = _reconstruct(checkpoint, tmp_path / "again", folder, code=2)
    assert len(report["skipped"]) == 3 and len(_ids(tmp_path / "again")) == 99  # nothing is lost
    assert "3 of 102 files are bad" in capsys.readouterr().err
    report = _reconstruct(checkpoint, tmp_path / "none", folder / "000.png", code=2)
    assert report["psnr"] is None and not (tmp_path / "none/ids.npz").exists()


def test_names_stay_apart_and_batches_change_nothing(tmp_path, checkpoint):
    folder = write_tree(
        tmp_path / "in", {"x/a.png": encoded(0), "y/a.png": encoded(1), "a.png": encoded(2), ".b.png": b""}
    )
    inputs = [folder, folder / "x/a.png", folder / "y/a.png"]
    _reconstruct(checkpoint, tmp_path / "out", *inputs)
    ids = _ids(tmp_path / "out")
    assert list(ids) == ["a.png", "x/a.png", "y/a.png", "a-2.png", "a-3.png"]
    assert (ids["a-2.png"] == ids["x/a.png"]).all() and (ids["a-3.png"] == ids["y/a.png"]).all()
    _reconstruct(checkpoint, tmp_path / "singly", *inputs, "--batch-size", "1")
    assert all((ids[name] == other).all() for name, other in _ids(tmp_path / "singly").items())
    odd = write_tree(
        tmp_path / "odd", {"a": encoded(0), "a.png": encoded(1), "a.jpg": encoded(2), "a.png.png": encoded(3)}
    )
    _reconstruct(checkpoint, tmp_path / "odds", odd)
    assert len(list((tmp_path / "odds/pictures").iterdir())) == 4


def test_sheets_and_points(tmp_path, checkpoint):
    folder = write_tree(tmp_path / "in", {f"{i:02d}.jpg": encoded(i) for i in range(41)})
    _reconstruct(checkpoint, tmp_path / "out", folder, "--sheet")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["sheet-1.png", "sheet-2.png"]
    assert not (tmp_path / "out/pictures").exists()
    _reconstruct(checkpoint, tmp_path / "points", folder / "00.jpg", "--points", "--tokens", "3,15")
    _reconstruct(checkpoint, tmp_path / "others", folder / "00.jpg", "--points")
    drawn = [Image.open(tmp_path / name / "points/00.jpg.png") for name in ("points", "others")]
    assert drawn[0].size == drawn[1].size and drawn[0].tobytes() != drawn[1].tobytes()


def test_what_cannot_be_done_is_one_line(tmp_path, checkpoint, capsys):
    image = write_tree(tmp_path, {"in/a.png": encoded(0)}) / "in/a.png"
    (tmp_path / "empty").mkdir()
    tiny_models.write_dataset(tmp_path / "set")
    _reconstruct(checkpoint, tmp_path / "out", image)
    with np.load(tmp_path / "out/ids.npz") as archive:
        np.savez(tmp_path / "other.npz", **{**archive, "tokenizer_hash": np.array("0" * 64)})
        np.savez(tmp_path / "outside.npz", **{**archive, "names": np.array(["../a.png"])})
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((1, 4, 4, 3), np.uint8))
    cases = [
        ([tmp_path / "absent.png"], "no image or folder at"),
        ([tmp_path / "empty"], "no image files in"),
        ([tmp_path / "set"], "is a prepared dataset"),
        ([tmp_path / "in"], "--out", tmp_path / "in/out", "lies in"),
        ([image, "--tokens", "1"], "--tokens belongs to --points"),
        ([image, "--points", "--tokens", "99"], "sampling points are drawn for"),
        ([image, "--points", "--tokens", "a"], "whole numbers"),
        ([image, "--batch-size", "0"], "must be positive"),
        ([tmp_path / "out/ids.npz", "--sheet"], "needs images"),
        ([tmp_path / "other.npz"], "codes of another tokenizer"),
        ([tmp_path / "outside.npz"], "do not fit together"),
        ([tmp_path / "images.npz"], "is not an npz of"),
    ]
    capsys.readouterr()
    for arguments, *out, words in cases:
        where = out or ["--out", tmp_path / "made"]
        assert main(["reconstruct", *map(str, [*arguments, *where, "--vq-ckpt", checkpoint])]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_pictures_do_not_replace_images(tmp_path, checkpoint, capsys):
    images = {f"{name}.png": encoded(0, (32, 32), "PNG") for name in ("pictures/a", "points/a", "decoded/a", "sheet-1")}
    folder = write_tree(tmp_path / "photos", images)
    for image in (*images, "pictures"):
        assert main(["reconstruct", str(folder / image), "--vq-ckpt", str(checkpoint), "--out", str(folder)]) == 2
        error = capsys.readouterr().err
        assert "which would replace it" in error and error.count("\n") == 1
    assert all((folder / name).read_bytes() == content for name, content in images.items())


def test_an_image_that_comes_back_exactly(tmp_path, checkpoint, capsys):
    """Its PSNR is infinite, which JSON does not have: a white page and a decoder that makes all white."""
    shutil.copytree(checkpoint, tmp_path / "white")
    tensors = load_file(tmp_path / "white/model.safetensors")
    tensors["pixel_decoder.conv_out.weight"].zero_()
    tensors["pixel_decoder.conv_out.bias"].fill_(9)
    save_file(tensors, tmp_path / "white/model.safetensors")
    Image.new("RGB", (40, 40), "white").save(tmp_path / "page.png")
    report = _reconstruct(tmp_path / "white", tmp_path / "one", tmp_path / "page.png")
    assert report["images"] == [{"name": "page.png", "psnr": None}] and report["psnr"] is None
    assert "mean none" in capsys.readouterr().out
    write_tree(tmp_path, {"other.png": encoded(3)})
    report = _reconstruct(tmp_path / "white", tmp_path / "two", tmp_path / "page.png", tmp_path / "other.png")
    assert report["psnr"] == report["images"][1]["psnr"] > 0 and "1 that came back exactly" in report["protocol"]
    assert list(_ids(tmp_path / "two")) == ["page.png", "other.png"]


def test_damaged_ids_are_one_line(tmp_path, checkpoint, capsys):
    _reconstruct(checkpoint, tmp_path / "out", write_tree(tmp_path, {"a.png": encoded(0)}) / "a.png")
    content = (tmp_path / "out/ids.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "changed.npz").write_bytes(content[:60] + bytes(20) + content[80:])
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with np.load(tmp_path / "out/ids.npz") as archive:
        arrays = dict(archive)
    ids = arrays["ids"]
    changes = {"range": {"ids": ids + 64}, "short": {"ids": ids[:, :4]}, "numbers": {"names": np.array([5])}}
    changes |= {"flat": {"ids": ids[0]}, "scalar": {"names": np.array("a")}}
    changes["twice"] = {"ids": ids.repeat(2, 0), "names": np.array(["a.png", "a.png"])}
    for name, change in changes.items():
        np.savez(tmp_path / f"{name}.npz", **{**arrays, **change})
    capsys.readouterr()
    for name in ("cut", "changed", "array", *changes):
        arguments = [str(tmp_path / f"{name}.npz"), "--vq-ckpt", str(checkpoint), "--out", str(tmp_path / "made")]
        assert main(["reconstruct", *arguments]) == 2, name
        error = capsys.readouterr().err
        assert ("is not an npz of" in error or "is damaged" in error) and error.count("\n") == 1
    assert not list(tmp_path.glob("made/*"))
