"""Which shards a path names, and which splits they make: by the names of files and folders, as ``vfmtok prepare``."""

from pathlib import Path

from vfmtok.data.remote_shards import find_remote, is_url
from vfmtok.data.shards import NO_OPTIONS, LocalShard, Place, ShardDataset, ShardOptions
from vfmtok.errors import DataError
from vfmtok.sources.containers import splits_of
from vfmtok.sources.given import Container, Given, look_at
from vfmtok.sources.splits import SplitNames


def names_shards(path: str | Path) -> bool:
    """Whether a path is that of shards: a URL, a .tar, a folder with some, or a pattern; nothing is opened."""
    text, path = str(path), Path(path)
    if is_url(text):
        return True
    if path.is_dir():
        return not (path / "data.mdb").is_file() and any(next(path.glob(p), None) for p in ("*.tar", "*/*.tar"))
    return path.suffix.lower() == ".tar" or (not path.exists() and bool(set("{*?[") & set(text)))


def open_shards(path: str | Path, options: ShardOptions = NO_OPTIONS) -> dict[str, ShardDataset]:
    """The shards that ``path`` names by split ("train", "val"), or all of them under "" if they are of one.

    Shards of a split called "test" are left out where there are others.

    Args:
        path: one .tar, a folder, or a pattern such as ``shards/{00000..00099}.tar`` or ``shards/train-*.tar``; local or
            a URL.

    Raises:
        DataError: there are none, some belong to a split by name and others do not, or they can't be read.
    """
    text = str(path)
    found = _find_remote(text) if is_url(text) else _find_local(text)
    splits = {split for _, split in found}
    if len(splits) == 1:
        return {"": ShardDataset(text, [place for place, _ in found], options)}
    if None in splits:
        odd = next(place.name for place, split in found if split is None)
        raise DataError(f"{text}: some shards belong to a train, val or test split by name, but {odd} does not")
    chosen = {split: [place for place, found_in in found if found_in == split] for split in ("train", "val")}
    return {split: ShardDataset(text, places, options) for split, places in chosen.items() if places}


def _find_local(path: str) -> list[tuple[Place, str | None]]:
    given = look_at([path])
    other = next((c for c in given.containers if c.kind != "archive" or c.path.suffix.lower() != ".tar"), None)
    if other is not None:
        raise DataError(f"{other.path} is no WebDataset shard (a plain .tar): `vfmtok prepare` makes records of it")
    places: list[Place] = [LocalShard(container.path.absolute()) for container in given.containers]
    return list(zip(places, splits_of(given, SplitNames()), strict=True))


def _find_remote(url: str) -> list[tuple[Place, str | None]]:
    found = find_remote(url)
    given = Given([Container(Path(shard.name), "archive", Path(url), inside) for shard, inside in found])
    return list(zip([shard for shard, _ in found], splits_of(given, SplitNames()), strict=True))
