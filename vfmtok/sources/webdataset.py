"""WebDataset shards: tar files whose members make samples, such as ``000123.jpg`` and ``000123.cls``.

* The key of a sample is webdataset's: folder and name up to the first dot. What follows is the member's own key
  ("jpg", "seg.png", "cls"), in lower case. A key that comes twice in a sample is an error.
* The image of a sample is its one member with an image's extension. Where some keys are an extension alone ("jpg") and
  others more than that ("seg.png"), the latter are left out and counted. Several that are left are an error, which
  ``--image-key`` decides.
* Its label is the text of its ``.cls`` (``.class``, ``.label``) or a value of its ``.json``; a ``.txt`` only if all of
  them hold whole numbers, for others may be captions. ``--label-key`` names another member or value. Pairs of images
  and captions, such as img2dataset writes, have no labels.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from vfmtok.errors import DataError
from vfmtok.sources.files import CorruptFile, Found, image_by_name, is_hidden, read

LABEL_MEMBERS = ("cls", "class", "label")
NUMBERED = (  # of a .json, or columns of a table: each may be the label, as a number or as a name
    "label", "cls", "class", "class_id", "class_idx", "class_index", "label_id", "label_idx", "category_id", "target",
)  # fmt: skip
NAMED = ("class_name", "classname", "label_name", "category_name", "category", "synset", "wnid")
_CAPTIONED = {"caption", "url", "text"}  # of a .json without a label: the text of a picture, not its class
_IMG2DATASET = {"key", "status", "url"}
_BESIDE_FOLDERS = {"label", "cls", "class", "class_name"}  # what counts more than the folder that an image lies in
_LOOKED_AT = 50  # samples of a shard whose .json is compared with the .cls
_MAX_LABEL = 2**31


class Keys(NamedTuple):
    """What the user says of samples and tables; None: by the rules above."""

    image: str | None = None  # --image-key
    label: str | None = None  # --label-key


NO_KEYS = Keys()


@dataclass
class Shard:
    """What the samples of one shard are."""

    images: list[Found]  # one per sample, by the order of the first members; ``label`` is None without labels
    labels_from: str | None  # "cls", "json", "txt", ...; None: the samples have no labels
    left_out: Counter[str] = field(default_factory=Counter)  # what is not used -> how often
    names: dict[int, str] = field(default_factory=dict)  # class names that came beside numbers
    files: dict[str, str] = field(default_factory=dict)  # of some images the name that their .json knows them by


def split_key(path: str) -> tuple[str, str] | None:
    """("folder/000123", "seg.png") of "folder/000123.seg.png"; None: the file belongs to no sample."""
    match = re.match(r"((?:.*/)?[^./]+)\.([^/]+)$", path)
    return (match[1], match[2].lower()) if match and not is_hidden(path) else None


def read_shard(
    shard: str, members: Sequence[Found], keys: Keys = NO_KEYS, labelled: bool = True, is_folder: bool = False
) -> Shard | None:
    """The samples of a shard, or None if its files are no samples but images by themselves.

    Args:
        shard: what messages call it.
        members: all files of the shard.
        labelled: False where labels do not matter: none is read, and none is missed.
        is_folder: the files are those of a folder, where other files beside an image mean less: samples are what has
            labels, or what img2dataset has written.

    Raises:
        DataError: a key comes twice, or what is image or label is missing or ambiguous.
    """
    if keys == NO_KEYS and not _may_be_samples(members, is_folder):
        return None
    samples, twice = _group(members)
    image_keys = _image_keys(samples, keys.image)
    pairs = {key: sample for key, sample in samples.items() if sample.keys() & image_keys}
    kind = _Kind(pairs)
    try:
        labels_from = _label_member(shard, pairs, kind, keys.label, is_folder)
    except DataError:
        if labelled:
            raise
        labels_from = "?"
    several = not is_folder and kind.is_flat and any(_images_of(sample) > image_keys for sample in pairs.values())
    if labels_from is None and not (keys.image or several or kind.is_captioned(is_folder)):
        return None
    if twice is not None:
        raise DataError(f"{shard}: a sample has two members '{twice}' (its key ends at the first dot)")
    found = Shard([], labels_from if labelled else None)
    for key, sample in samples.items():
        images = sorted(sample.keys() & image_keys)
        if len(images) > 1:
            raise DataError(
                f"{shard}: sample '{key}' has several images: choose one by --image-key {' or '.join(images)}"
            )
        if images:
            found.images.append(sample[images[0]])
        else:
            found.left_out["samples without an image"] += 1
        unused = sample.keys() - {*images, labels_from, "json" if labels_from else ""}
        found.left_out.update(f".{member}" for member in unused)
    if found.labels_from is not None:
        _read_labels(shard, found, samples, keys.label)
    return found


class _Kind(NamedTuple):
    """What samples with images look like from outside."""

    pairs: dict[str, dict[str, Found]]  # key -> members, of samples with an image

    @property
    def is_flat(self) -> bool:
        """Whether the images lie in one folder, or beside folders: no folder names their classes."""
        folders = {key.rpartition("/")[0] for key in self.pairs}
        return len(folders) < 2 or "" in folders

    @property
    def document(self) -> dict | None:
        """The first .json."""
        first = next((sample["json"] for sample in self.pairs.values() if "json" in sample), None)
        return _json(first) if first is not None else None

    def is_captioned(self, is_folder: bool) -> bool:
        words = (self.document or {}).keys()
        return words >= _IMG2DATASET or bool(self.is_flat and not is_folder and _CAPTIONED & words)


def _images_of(sample: dict[str, Found]) -> set[str]:
    return {member for member in sample if image_by_name(f"x.{member}")}


def _may_be_samples(members: Sequence[Found], is_folder: bool) -> bool:
    """A quick look at the names: whether other files may belong to images, or one image to another."""
    companions = (".json", *(f".{member}" for member in LABEL_MEMBERS), *(() if is_folder else (".txt",)))
    if any(member.path.lower().endswith(companions) for member in members):
        return True
    return not is_folder and any("." in split[1] for member in members if (split := split_key(member.path)))


def _group(members: Iterable[Found]) -> tuple[dict[str, dict[str, Found]], str | None]:
    """key of the sample -> key of the member -> the member; and the path of a member that came twice."""
    samples: dict[str, dict[str, Found]] = {}
    twice = None
    for member in members:
        split = split_key(member.path)
        if split is not None:
            sample = samples.setdefault(split[0], {})
            twice = member.path if split[1] in sample else twice
            sample[split[1]] = member
    return samples, twice


def _image_keys(samples: dict[str, dict[str, Found]], chosen: str | None) -> set[str]:
    """The member keys that are images: extensions alone, where there are some."""
    if chosen is not None:
        return {chosen.lower().lstrip(".")}
    found = set().union(*map(_images_of, samples.values()))
    return {member for member in found if "." not in member} or found


def _label_member(shard: str, pairs: dict, kind: _Kind, chosen: str | None, is_folder: bool) -> str | None:
    """The key of the members that hold the labels, or None where there are none. Raises DataError."""
    members = set().union(*pairs.values())
    if chosen is not None:
        chosen = chosen.lstrip(".").lower()
        return chosen if chosen in members else "json" if "json" in members else None
    labels = [member for member in members if member.split(".")[-1] in LABEL_MEMBERS]
    if len(labels) > 1:
        _refuse_several(shard, pairs, sorted(labels))
    if labels:
        return labels[0]
    document = (kind.document or {}) if "json" in members else {}
    if document.keys() & ({*NUMBERED, *NAMED} if kind.is_flat else set() if is_folder else _BESIDE_FOLDERS):
        return "json"
    if not kind.is_flat or is_folder or kind.is_captioned(is_folder):
        return None
    texts = [sample["txt"] for sample in pairs.values() if "txt" in sample]
    if texts and all(re.fullmatch(rb"\s*\d+\s*", _content(text)) for text in texts):
        return "txt"
    if texts or "json" in members:
        keys = ", ".join(islice(map(str, document), 8)) or "none"
        what = "a .txt, which may be a caption" if texts else f"a .json with the keys {keys}"
        raise DataError(
            f"{shard}: the images have no .cls but {what}: say --label-key {'txt' if texts else 'KEY'}, or "
            "--classes-from none if they have no labels"
        )
    return None


def _refuse_several(shard: str, pairs: dict, labels: list[str]) -> None:
    key = next((key for key, sample in pairs.items() if len(sample.keys() & set(labels)) > 1), None)
    what = f"sample '{key}' has several labels" if key is not None else "samples differ in what holds their labels"
    raise DataError(f"{shard}: {what}: choose by --label-key {' or '.join(labels)} (a key ends at the first dot)")


# --------------------------------------------------------------------------------------
# Labels
# --------------------------------------------------------------------------------------


def _read_labels(shard: str, found: Shard, samples: dict, chosen: str | None) -> None:
    """Set the label of every image. Raises DataError."""
    value_key = chosen if chosen is not None and found.labels_from == "json" != chosen else None
    for number, image in enumerate(found.images):
        where = f"{shard}: '{image.path}'"
        sample = samples[split_key(image.path)[0]]
        label = None
        if found.labels_from in sample and found.labels_from != "json":
            text = _content(sample[found.labels_from]).decode("utf-8-sig", "replace")
            label = as_label(text, where, typed=False)
        elif "json" in sample:
            label, name = label_of_document(_json(sample["json"]) or {}, where, value_key)
            if isinstance(label, int) and name is not None:
                found.names.setdefault(label, name)
        if label is None:
            what = f"'{value_key}' in its .json" if value_key else f"in its .{found.labels_from}"
            raise DataError(f"{where} has no label {what}")
        if "json" in sample and found.labels_from != "json" and number < _LOOKED_AT and chosen is None:
            _compare(where, label, _json(sample["json"]) or {}, found, image)
        found.images[number] = image._replace(label=label)


def _compare(where: str, label: int | str, document: dict, found: Shard, image: Found) -> None:
    """Raises DataError if a .json says another label than the .cls; keeps the file name that it knows."""
    other = document.get("label")
    if type(other) is type(label) and other != label:
        own = found.labels_from
        raise DataError(f"{where} has label {label} in its .{own}, {other} in its .json: --label-key {own} or label?")
    name = document.get("filename", document.get("file_name"))
    if isinstance(name, str):
        found.files[image.path] = name


def label_of_document(
    document: dict[str, Any], where: str, key: str | None = None
) -> tuple[int | str | None, str | None]:
    """The label that a .json or a table's row holds, and the class's name where that comes beside a number.

    Raises:
        DataError: values that could be the label disagree, or it is neither a whole number nor text.
    """
    if key is not None:
        return as_label(document.get(key), where), None
    found = {name: as_label(document[name], where) for name in (*NUMBERED, *NAMED) if document.get(name) is not None}
    numbers = {name: value for name, value in found.items() if isinstance(value, int)}
    texts = [value for value in found.values() if isinstance(value, str)]
    if len(set(numbers.values())) > 1:
        raise DataError(f"{where} has several labels: choose one by --label-key {' or '.join(numbers)}")
    if numbers:
        return next(iter(numbers.values())), texts[0] if texts else None
    return (texts[0] if texts else None), None


def as_label(value: Any, where: str, typed: bool = True) -> int | str | None:
    """A label: a whole number, or text. None: there is none.

    Args:
        where: what messages begin with.
        typed: False: text that spells a number is that number.

    Raises:
        DataError: it is neither, such as 0.5 or a list.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str) and not typed:
        value = _number_or_text(value.strip())
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) not in (int, str):
        raise DataError(f"{where} has label {value!r:.80}: labels must be whole numbers or text")
    if type(value) is int and value >= _MAX_LABEL:
        raise DataError(f"{where} has label {value}, which is too large for a class")
    return value


def _number_or_text(text: str) -> int | float | str:
    if re.fullmatch(r"[+-]?\d+", text, re.ASCII):
        sign, digits = ("-" if text[0] == "-" else ""), text.lstrip("+-").lstrip("0")[:20]  # more are too many anyway
        return int(sign + (digits or "0"))
    return float(text) if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=e))(e[+-]?\d+)?", text, re.ASCII | re.I) else text


def _content(member: Found) -> bytes:
    """Raises DataError."""
    try:
        return read(member.place)
    except CorruptFile as error:
        raise DataError(f"'{member.path}' of {member.place[1]}: {error}") from None


def _json(member: Found) -> dict | None:
    try:
        document = json.loads(_content(member))
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
