"""The splits of a prepared folder: the one that is asked for, never another."""

import pytest
from image_makers import encoded

from vfmtok.data.dataset_folder import open_for_training, open_split
from vfmtok.data.records import Record, RecordWriter, write_records
from vfmtok.errors import DataError
from vfmtok.evaluation.image_sources import open_images


def _write(folder, count: int) -> None:
    if count:
        write_records(folder, [Record(encoded(i), 0, f"{i}") for i in range(count)], classes=["a"])
        return
    with RecordWriter(folder) as writer:
        writer.finish(classes=["a"])


@pytest.fixture
def prepared(tmp_path):
    def write(**counts: int):
        for split, count in counts.items():
            _write(tmp_path / f"{split}_lmdb", count)
        return tmp_path

    return write


def test_a_split_by_its_name_or_the_one_folder_that_is_named(prepared):
    folder = prepared(train=3, val=2)
    assert [len(open_split(folder, split)) for split in ("train", "val")] == [3, 2]
    assert len(open_split(folder / "train_lmdb", "val")) == 3  # named by the user, so it is meant
    assert [len(records) for records in open_for_training(folder)] == [3, 2]
    assert [len(records) for records in open_for_training(folder / "train_lmdb")] == [3, 2]


@pytest.mark.parametrize("there, wanted", [("train", "val"), ("val", "train")])
def test_another_split_never_takes_the_place_of_a_missing_one(prepared, there, wanted):
    folder = prepared(**{there: 3})
    with pytest.raises(DataError, match=rf"{wanted}_lmdb.*{there}_lmdb"):
        open_split(folder, wanted)
    if wanted == "val":
        assert open_for_training(folder)[1] is None
        with pytest.raises(DataError, match="val_lmdb"):
            open_for_training(folder, folder)
        with pytest.raises(DataError, match="val_lmdb"):  # a reference for FID, or what a tokenizer is measured on
            open_images(folder, 32)
    else:
        with pytest.raises(DataError, match="train_lmdb"):
            open_for_training(folder)


def test_an_empty_split_is_an_error_and_not_the_training_images(prepared):
    folder = prepared(train=3, val=0)
    for ask in (lambda: open_split(folder, "val"), lambda: open_for_training(folder), lambda: open_images(folder, 32)):
        with pytest.raises(DataError, match="val_lmdb is empty"):
            ask()
