"""A prepared folder as a whole: its splits, reading every record again, and back to files."""

import hashlib
import os
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from vfmtok.data import image_files
from vfmtok.data.ordered_pool import default_workers, ordered_results
from vfmtok.data.records import Record, RecordDataset, encode_record
from vfmtok.data.remote_shards import is_url
from vfmtok.data.shard_sources import names_shards, open_shards
from vfmtok.data.shards import NO_OPTIONS, ShardDataset, ShardOptions
from vfmtok.errors import DataError
from vfmtok.files import replacing

CHUNK = 64  # records per task of a worker

Dataset = RecordDataset | ShardDataset


def open_splits(path: str | Path, options: ShardOptions = NO_OPTIONS) -> dict[str, Dataset]:
    """The datasets of a prepared folder or of WebDataset shards by split; what is no split but one dataset under "".

    Args:
        path: a prepared folder, one LMDB folder, or shards (see ``shard_sources.open_shards``).
        options: of shards.

    Raises:
        DataError: nothing complete is there, or options are given that are of shards only.
    """
    if names_shards(path):
        return open_shards(path, options)
    path = Path(path)
    if options != NO_OPTIONS:
        given = next(name for name, value in options._asdict().items() if value is not None)
        raise DataError(f"data.{given} is for shards, and {path} is not: `vfmtok prepare` has chosen its images")
    splits = [split for split in ("train", "val") if (path / f"{split}_lmdb").is_dir()]
    if splits:
        return {split: RecordDataset(path / f"{split}_lmdb") for split in splits}
    return {"": RecordDataset(path)}


def open_dataset(path: str | Path) -> Dataset:
    """The one dataset that a path names. Raises DataError: there is none, or there are several splits."""
    if not names_shards(path):
        return RecordDataset(path)
    splits = open_splits(path)
    if len(splits) > 1:
        raise DataError(f"{path} holds shards of {' and '.join(splits)}: name those of one, such as train-*.tar")
    return _with_records(next(iter(splits.values())))


def open_split(path: str | Path, split: str, options: ShardOptions = NO_OPTIONS) -> Dataset:
    """A split of a prepared folder or of shards, or the one dataset that ``path`` names, whatever split that is.

    Raises:
        DataError: nothing complete is there, the folder lacks this split, or the split is empty. Another split never
            takes its place: numbers on training images would pass for those on held-out ones.
    """
    splits = open_splits(path, options)
    if "" in splits:
        return _with_records(splits[""])
    if split not in splits:
        other = next(iter(splits))
        what = f"the shards of {other}" if names_shards(path) else f"{Path(path) / other}_lmdb"
        raise DataError(f"{_lacks(path, split)}; name {what} if you mean that one")
    return _with_records(splits[split])


def open_for_training(
    path: str | Path, held_out: str | Path | None = None, options: ShardOptions = NO_OPTIONS
) -> tuple[Dataset, Dataset | None]:
    """The training images and the held-out ones.

    Args:
        path: a prepared folder, one LMDB, or shards.
        held_out: likewise, of which the validation split is taken; None takes the validation split beside the
            training one, if there is one.
        options: of shards; the held-out ones, where they are named, take what applies to them.

    Raises:
        DataError: nothing complete is there, the folder has no training split, or one of the two is empty.
    """
    if not is_url(str(path)):
        path = Path(path).expanduser()
        if path.name == "train_lmdb" and (path.parent / "val_lmdb").is_dir():
            path = path.parent
    splits = open_splits(path, options)
    train = splits.get("train", splits.get(""))
    if train is None:
        raise DataError(_lacks(path, "train"))
    if held_out is not None:
        return _with_records(train), open_held_out(held_out, options)
    return _with_records(train), _with_records(splits["val"]) if "val" in splits else None


def open_held_out(path: str | Path, options: ShardOptions = NO_OPTIONS) -> Dataset:
    """The validation split of what is named as held-out images; of ``options`` it takes what applies to it.

    Raises DataError as ``open_split`` does.
    """
    path = path if is_url(str(path)) else Path(path).expanduser()
    return open_split(path, "val", options if names_shards(path) else NO_OPTIONS)


def _lacks(path: str | Path, split: str) -> str:
    name = {"train": "training", "val": "validation"}[split]
    return f"{path} has no {name} split ({'no such shards' if names_shards(path) else f'{split}_lmdb'})"


def _with_records(records: Dataset) -> Dataset:
    if not len(records):
        raise DataError(f"{records.path} is empty")
    return records


def verify(path: Path, workers: int | None = None) -> None:
    """Read every record: stored checksum, decoding, label, and the fingerprint over all of them.

    Raises:
        DataError: any record is bad; the message counts them and names the first.
    """
    for dataset in open_splits(path).values():
        tasks = (range(i, min(i + CHUNK, len(dataset))) for i in range(0, len(dataset), CHUNK))
        chain, bad = b"", []
        workers_here = default_workers(len(dataset)) if workers is None else workers
        with tqdm(total=len(dataset), desc=f"verify {dataset.path.name}", unit=" images") as bar:
            for results in ordered_results(partial(verify_records, dataset), tasks, workers_here):
                for digest, reason in results:
                    chain = hashlib.sha256(chain + digest).digest()
                    bad += [reason] if reason else []
                bar.update(len(results))
        if bad:
            raise DataError(f"{dataset.path}: {len(bad)} of {len(dataset)} records are bad; first: {bad[0]}")
        said = dataset.metadata.get("fingerprint")
        if said is not None and said != chain.hex():
            raise DataError(f"{dataset.path}: the records do not match the dataset's fingerprint")
        claim = (
            "checksums, decoding and fingerprint" if said is not None else "decoding (the dataset has no fingerprint)"
        )
        print(f"{dataset.path}: {len(dataset)} records verified: {claim}")


def verify_records(dataset: Dataset, indices: range) -> list[tuple[bytes, str]]:
    """For each record the SHA-256 of its canonical bytes, and what is wrong with it or ""."""
    results = []
    for index in indices:
        digest, reason = b"", ""
        try:
            record = dataset[index]
            digest = hashlib.sha256(encode_record(record)).digest()
            image_files.open_image(record.image)
            if record.label < 0 or (dataset.classes is not None and record.label >= len(dataset.classes)):
                reason = f"record {index}: label {record.label} is outside the {len(dataset.classes or [])} classes"
        except image_files.NotAnImage as error:
            reason = f"record {index}: {error}"
        except DataError as error:
            reason = str(error)
        results.append((digest, reason))
    return results


def export(path: Path, folder: Path) -> None:
    """Write every image back under its original name; nameless records go to class folders by number.

    An image that prepare wrote in another format gets that format's extension behind its name: "1.gif" comes
    back as "1.gif.png", which can't be in the way of a "1.png". Files that are there with the same content are
    kept, so an interrupted export continues.

    Raises:
        DataError: a record is damaged, a name leads out of the folder, another file is in the way, or
            the disk is full.
    """
    splits = open_splits(path)
    for split, dataset in splits.items():
        options = dataset.metadata.get("options") or {}
        for index in tqdm(range(len(dataset)), desc=f"export {split or dataset.path.name}", unit=" images"):
            record = dataset[index]
            try:
                name = record.name or _numbered_name(dataset, index, record, split)
                name += _added_suffix(PurePosixPath(name).suffix, record.image, options)
            except image_files.NotAnImage as error:
                raise DataError(f"record {index} of {dataset.path}: {error}") from None
            _write_file(folder, name, record.image)
        print(f"{folder}: {len(dataset)} files of {dataset.path}")


def _numbered_name(dataset: Dataset, index: int, record: Record, split: str) -> str:
    in_range = dataset.classes is not None and 0 <= record.label < len(dataset.classes)
    class_name = dataset.classes[record.label] if in_range else str(record.label)
    suffix = image_files.suffix_of(image_files.open_image(record.image))
    return f"{split + '/' if split else ''}{class_name.replace('/', '_')}/{index:08d}{suffix}"


def _added_suffix(suffix: str, content: bytes, options: dict[str, Any]) -> str:
    """What to put behind a name that ends in ``suffix``: "" unless prepare's options changed the image's format.

    A wrong extension that came with an untouched image stays. --resize alone changes formats to PNG only, and
    only of images that it brought to its short side; under --format anything may have changed.
    """
    if options.get("resize") is None and options.get("format") is None:
        return ""
    image = image_files.open_image(content, decode=False)
    if options.get("format") is None and (image.format != "PNG" or min(image.size) != options["resize"]):
        return ""
    return "" if image_files.matches_suffix(image, suffix) else image_files.suffix_of(image)


def _write_file(folder: Path, name: str, content: bytes) -> None:
    file = Path(os.path.normpath(folder / name))
    if os.path.isabs(name) or not file.is_relative_to(os.path.normpath(folder)) or "\0" in name:
        raise DataError(f"the record name {name!r} leads out of the folder")
    try:
        if file.exists():
            if file.read_bytes() != content:
                raise DataError(f"{file} is there with other content: export to a new folder")
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, sync=False) as part:
            part.write_bytes(content)
    except OSError as error:
        raise DataError(f"cannot write {file}: {error.strerror or error}") from None
