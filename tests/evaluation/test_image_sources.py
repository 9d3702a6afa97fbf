"""Images from every kind of source, and every rank's share of them."""

import io
import itertools

import numpy as np
import pytest
import torch
from image_makers import write_tree
from PIL import Image
from test_listing import make_tar

from vfmtok.commands.prepare import prepare
from vfmtok.data.records import Record, write_records
from vfmtok.data.transforms import EvaluationCrop
from vfmtok.errors import DataError, EvaluationError
from vfmtok.evaluation.image_sources import batches, open_images


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (13, 10, 10, 3), dtype=np.uint8)


def joined(source, batch=4, **share):
    parts = list(batches(source, batch, **share))
    return torch.cat([p.images for p in parts]), torch.cat([p.indices for p in parts])


@pytest.fixture(params=["memory", "tensor", "npz", "compressed npz", "folder"])
def source(request, images, tmp_path):
    if request.param == "memory":
        return open_images(images)
    if request.param == "tensor":
        return open_images(torch.from_numpy(images))
    if request.param == "folder":
        for index, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / f"{index:06d}.png")
        (tmp_path / "notes.txt").write_text("no image")
        return open_images(tmp_path)
    save = np.savez if request.param == "npz" else np.savez_compressed
    save(tmp_path / "samples.npz", images, np.arange(13))  # labels may follow
    return open_images(tmp_path / "samples.npz")


def test_all_sources_give_the_same(source, images):
    expected = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert len(source) == 13 and source.crop == "as given"
    for batch in (1, 4, 64):
        found, indices = joined(source, batch)
        assert torch.equal(found, expected) and indices.tolist() == list(range(13))


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_shares_drop_and_repeat_nothing(source, images, world_size):
    shares = [joined(source, 4, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert torch.cat([indices for _, indices in shares]).tolist() == list(range(13))
    assert torch.equal(torch.cat([found for found, _ in shares]), torch.from_numpy(images).permute(0, 3, 1, 2))
    assert max(len(i) for _, i in shares) - min(len(i) for _, i in shares) <= 1


def test_more_ranks_than_images(images):
    shares = [list(batches(open_images(images[:2]), 4, rank, 5)) for rank in range(5)]
    assert sorted(len(share) for share in shares) == [0, 0, 0, 1, 1]


def test_files_and_records_are_cropped_for_evaluation(tmp_path):
    draw = np.random.default_rng(1)
    contents = []
    (tmp_path / "files").mkdir()
    for index, shape in enumerate([(40, 60, 3), (70, 33, 3), (32, 32, 3)]):
        path = tmp_path / "files" / f"{index}.png"
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(path)
        contents.append(path.read_bytes())
    write_records(tmp_path / "lmdb", [Record(content, 0, str(i)) for i, content in enumerate(contents)])
    expected = torch.stack([EvaluationCrop(24)(content) for content in contents])
    for place in ("files", "lmdb"):
        source = open_images(tmp_path / place, size=24)
        assert torch.equal(joined(source)[0], expected)
        assert source.crop == "centre 24 (BOX halvings, bicubic, centre crop)"
    for share in ({}, {"batch": 1}, {"rank": 1, "world_size": 3}):  # the first is in another batch, or another's share
        with pytest.raises(DataError, match=r"image 1 of files is 33x70, the first is 60x40: make them one size"):
            joined(open_images(tmp_path / "files"), **share)
    with pytest.raises(DataError, match="say the size"):
        open_images(tmp_path / "lmdb")


def _contents(source):
    """The images as a set of bytes; how many there are."""
    found = [image.numpy().tobytes() for batch in batches(source, 4) for image in batch.images]
    return set(found), len(found)


def test_measured_are_the_images_that_prepare_sees(tmp_path, images):
    """Linked class folders, any format, no shadows of systems and editors, archives and shards."""
    encoded, buffer = {}, io.BytesIO()
    for index, (folder, suffix) in enumerate(itertools.product(("a", "b", "c"), ("png", "tif", "bmp", "gif"))):
        buffer = io.BytesIO()
        Image.fromarray(images[index]).quantize(8).convert("RGB").save(buffer, {"tif": "TIFF"}.get(suffix, suffix))
        encoded[f"{folder}/{index}.{suffix}"] = buffer.getvalue()
    junk = {"a/._1.png": b"\0", ".ipynb_checkpoints/0.png": encoded["a/0.png"], "a/.ipynb_checkpoints/0.png": b"x"}
    write_tree(tmp_path / "real", encoded)
    folder = write_tree(tmp_path / "s", junk | {"LICENSE": b"BSD", "notes.txt": b"x"})
    for name in ("b", "c"):
        (folder / name).symlink_to(tmp_path / "real" / name)
    write_tree(folder, {name: content for name, content in encoded.items() if name.startswith("a/")})
    prepare([str(folder)], tmp_path / "out")
    expected = _contents(open_images(tmp_path / "out/train_lmdb", 10))
    assert expected[1] == 12 == len(expected[0])
    make_tar(tmp_path / "s.tar.gz", encoded, "w:gz")
    shard = {**encoded, **{f"{name[:-4]}.cls": b"1" for name in encoded}, "a/0.seg.png": encoded["a/0.png"]}
    make_tar(tmp_path / "shard.tar", shard)
    for source in (folder, tmp_path / "s.tar.gz", tmp_path / "shard.tar"):
        assert _contents(open_images(source)) == _contents(open_images(source, 10)) == expected
    assert open_images(folder).by_class and not open_images(folder / "a").by_class


def test_splits_are_not_measured_together(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    folder = write_tree(tmp_path / "s", {f"{split}/a/1.png": buffer.getvalue() for split in ("train", "test")})
    with pytest.raises(DataError, match="holds test and train: name the folder or file that is meant"):
        open_images(folder)
    assert len(open_images(folder / "test")) == 1


def test_labels_in_order_are_noticed(tmp_path, images):
    np.savez(tmp_path / "sorted.npz", images, np.repeat([0, 1], [6, 7]))
    np.savez(tmp_path / "mixed.npz", images, np.arange(13) % 2)
    np.savez(tmp_path / "none.npz", images)
    found = [open_images(tmp_path / f"{name}.npz").by_class for name in ("sorted", "mixed", "none")]
    assert found == [True, False, False]


def test_bad_sources(tmp_path, images):
    def refused(place, match, error=DataError):
        with pytest.raises(error, match=match) as caught:
            joined(open_images(place))
        assert "\n" not in str(caught.value)

    refused(tmp_path / "gone", "no images at")
    refused(tmp_path / "gone.npz", "cannot read")
    refused(tmp_path, "no image files")
    np.savez(tmp_path / "a.npz", mu=np.zeros(3))
    refused(tmp_path / "a.npz", "it has no 'arr_0'")
    np.savez(tmp_path / "b.npz", images.astype(np.float32))
    refused(tmp_path / "b.npz", r"must be uint8 \(N,H,W,3\), got float32", EvaluationError)
    refused(images.transpose(0, 3, 1, 2), "must be uint8", EvaluationError)
    np.savez(tmp_path / "c.npz", np.array([{"a": 1}], dtype=object))
    refused(tmp_path / "c.npz", "must be uint8", EvaluationError)
    np.savez(tmp_path / "d.npz", images)
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[1000] ^= 255
    (tmp_path / "d.npz").write_bytes(content)
    refused(tmp_path / "d.npz", "is damaged")
    (tmp_path / "e.npz").write_bytes(b"not a zip")
    refused(tmp_path / "e.npz", "cannot read")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x.png").write_bytes(b"broken")
    refused(folder, r"x\.png: not an image")
