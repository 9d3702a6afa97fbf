"""WebDataset shards: tar files whose members share a name and differ in extension, such as
``000123.jpg`` and ``000123.cls``."""

import json
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from vfmtok.data.sources.files import Found, is_candidate, read
from vfmtok.errors import DataError

_JSON_KEYS = ("label", "cls", "class", "class_name")


def is_webdataset(members: Iterable[Found]) -> bool:
    """Whether a tar's images bring their labels as ``.cls`` or labelled ``.json`` members."""
    jsons, keys = [], set()
    for member in members:
        suffix = PurePosixPath(member.path).suffix.lower()
        if suffix == ".cls":
            return True
        if suffix == ".json":
            jsons.append(member)
        elif is_candidate(member.path):
            keys.add(_key(member.path))
    partners = (member for member in jsons if _key(member.path) in keys)
    first = next(partners, None)
    return first is not None and _json_label(first) is not None


def labelled_images(shard: str, members: Iterable[Found]) -> Iterator[Found]:
    """The images of one shard, each with the label that its ``.cls`` or ``.json`` member holds.

    Raises:
        DataError: an image has no label.
    """
    members = list(members)
    labels: dict[str, int | str | None] = {}
    for member in members:
        suffix = PurePosixPath(member.path).suffix.lower()
        if suffix == ".cls":
            text = read(member.place).decode("utf-8", "replace").strip()
            labels[_key(member.path)] = _number_or_text(text)
        elif suffix == ".json":
            labels.setdefault(_key(member.path), _json_label(member))
    for member in members:
        if is_candidate(member.path):
            label = labels.get(_key(member.path))
            if label is None:
                raise DataError(f"{shard}: '{member.path}' has no label (a .cls member, or 'label' in a .json)")
            yield member._replace(label=label)


def _key(path: str) -> str:
    """WebDataset's rule: the name up to the first dot."""
    pure = PurePosixPath(path)
    return str(pure.parent / pure.name.split(".")[0])


def _json_label(member: Found) -> int | str | None:
    try:
        document = json.loads(read(member.place))
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    values = (document.get(key) for key in _JSON_KEYS)
    return next((value for value in values if isinstance(value, int | str)), None)


def _number_or_text(text: str) -> int | str | None:
    return int(text.lstrip("0")[:20] or "0") if text.isdecimal() else text or None
