"""ImageNet-1k: its 1,000 synsets in the order of their labels, its official archives, and whether labels are right.

Label n is the n-th synset ("n01440764" is 0) in sorted order, as in torchvision, timm and every published model. The
devkit of 2012 numbers them otherwise, from 1, which is where shifted and shuffled labels come from. The list is timm's.
"""

import importlib.util
import io
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from vfmtok.errors import DataError
from vfmtok.sources.archives import walk_tar
from vfmtok.sources.files import CorruptFile, Found, read
from vfmtok.sources.folders import walk_folder
from vfmtok.sources.scratch import Scratch

COUNT = 1000
ANSWERS = "ILSVRC2012_validation_ground_truth.txt"
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")
_SYNSET = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?!\d)")
MOST = 900  # classes: who has so many of ImageNet's means ImageNet
VERIFIED = "ImageNet-1k, labels verified"


@lru_cache(maxsize=1)
def synsets() -> tuple[str, ...]:
    """The 1,000 WordNet ids by label. Raises DataError where timm does not bring them."""
    return tuple(_read_info("imagenet_synsets.txt").split())


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """The classes' names by label, such as "tench, Tinca tinca", which the Hub's data sets use."""
    lemmas = dict(line.split("\t", 1) for line in _read_info("imagenet_synset_to_lemma.txt").splitlines() if line)
    return tuple(lemmas[synset] for synset in synsets())


def _read_info(name: str) -> str:
    found = importlib.util.find_spec("timm")  # importing timm would take seconds
    folders = found.submodule_search_locations if found is not None else None
    try:
        return (Path(next(iter(folders or ["timm"]))) / "data/_info" / name).read_text(encoding="utf-8")
    except OSError:
        raise DataError(f"timm does not bring {name}, ImageNet's classes: pip install 'timm>=1.0.21'") from None


def is_validation(paths: Iterable[str]) -> bool:
    """Whether images are those of ImageNet's validation, by their names."""
    return all(_VALIDATION.search(path) for path in paths)


def is_devkit(path: Path) -> bool:
    """Whether an archive or folder is ImageNet's development kit, by its name."""
    return re.match(r"ILSVRC\d*_devkit", path.name, re.I) is not None


def number_of(path: str) -> int | None:
    """Which image of the validation set it is, from 1."""
    match = _VALIDATION.search(path)
    return int(match[1]) if match else None


def read_devkit(path: Path, scratch: Scratch) -> list[str]:
    """The synset of every validation image in the order of their names, from the devkit, packed or unpacked.

    Raises:
        DataError: it is not complete, or scipy, which reads its meta.mat, is not installed.
    """
    files = {found.path: found for found in (walk_folder(path) if path.is_dir() else walk_tar(path, scratch))}
    answers = _ends_with(files, ANSWERS)
    meta = _ends_with(files, "meta.mat")
    if answers is None or meta is None:
        raise DataError(f"{path} is no ImageNet devkit: data/{ANSWERS if answers is None else 'meta.mat'} is not in it")
    try:
        synset_of = _synsets_of_meta(read(meta.place), path)
        return [synset_of[int(word)] for word in read(answers.place).split()]
    except KeyError as error:
        raise DataError(f"{path}: {ANSWERS} names class {error}, which meta.mat does not have") from None
    except (ValueError, CorruptFile) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def _ends_with(files: dict[str, Found], name: str) -> Found | None:
    return next((found for path, found in files.items() if f"/{path}".endswith(f"/{name}")), None)


def _synsets_of_meta(content: bytes, path: Path) -> dict[int, str]:
    """The devkit's number of a class -> its synset, of the classes without children."""
    try:
        import scipy.io
    except ImportError:
        raise DataError(f"reading meta.mat in {path} needs scipy: pip install 'vfmtok[imagenet]'") from None
    try:
        rows = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        return {int(row[0]): str(row[1]) for row in rows if int(row[4]) == 0}  # id, WordNet id; number of children
    except Exception as error:  # scipy raises nearly anything
        raise DataError(f"meta.mat in {path} is not what a devkit holds: {error}") from None


# --------------------------------------------------------------------------------------
# Whether labels are right
# --------------------------------------------------------------------------------------


def verify(classes: Sequence[str], images: Iterable[tuple[str, int]]) -> str | None:
    """What there is to say of labels that may be ImageNet's; None: these images are of something else.

    Args:
        classes: names by label.
        images: what each image is called, with its label.

    Raises:
        DataError: the images are ImageNet's and a label is not.
    """
    own = set(classes) & set(synsets())
    if own:
        return _verify_synsets(classes, own)
    return _verify_names(classes) or _verify_images(len(classes), images)


def _verify_synsets(classes: Sequence[str], own: set[str]) -> str | None:
    if tuple(classes) == synsets():
        return f"{VERIFIED}: the 1,000 synsets, in ImageNet's order"
    others = [name for name in classes if name not in own]
    if len(own) == COUNT and len(others) <= COUNT - MOST:
        raise DataError(
            f"these are ImageNet's 1,000 classes and {len(others)} more, such as '{others[0]}', which would shift the "
            "labels after it: leave it out, or --classes-from FILE says the order of the classes"
        )
    if len(own) >= MOST and not others:
        missing = [synset for synset in synsets() if synset not in own]
        raise DataError(
            f"{len(missing)} of ImageNet's 1,000 classes are missing, such as {missing[0]}, and the labels after it "
            "would shift: --classes-from imagenet keeps ImageNet's numbers"
        )
    if not others:
        return f"{len(own)} of ImageNet's classes, numbered among themselves (--classes-from imagenet: as in ImageNet)"
    return None


def _verify_names(classes: Sequence[str]) -> str | None:
    """Of classes with names such as "tench, Tinca tinca": by the first word of most, for lists differ in details."""
    if not COUNT <= len(classes) <= COUNT + 1:
        return None
    ours = [name.split(",")[0].lower() for name in names()]
    theirs = [name.split(",")[0].strip().lower().replace("_", " ") for name in classes]
    in_place = {shift: sum(map(str.__eq__, ours, theirs[shift:])) for shift in (0, 1)}
    if in_place[0] > COUNT // 2:
        return f"{VERIFIED}: the names of the 1,000 classes, in ImageNet's order"
    if in_place[1] > COUNT // 2 or len(set(ours) & set(theirs)) > MOST:
        raise DataError(
            "the classes have the names of ImageNet's, in another order or shifted: --classes-from FILE says which"
        )
    return None


def _verify_images(count: int, images: Iterable[tuple[str, int]]) -> str | None:
    """Of classes with other names or none, the images' names may tell the synset: n01440764_18.JPEG."""
    label_of = {synset: label for label, synset in enumerate(synsets())}
    right, unknown, seen, shifts, wrong = 0, 0, set(), set(), ""
    for name, label in images:
        found = [word for word in _SYNSET.findall(name) if word in label_of]
        if not found:
            unknown += 1
            continue
        shift = label - label_of[found[-1]]
        seen.add(found[-1])
        shifts.add(shift)
        right += shift == 0
        if shift and not wrong:
            wrong = f"'{name}' has {label}, and {found[-1]} is {label_of[found[-1]]}"
    if wrong and (len(seen) >= MOST or (shifts == {1} and len(seen) > 1)):
        shifted = f", all shifted by {next(iter(shifts))}" if len(shifts) == 1 else ""
        raise DataError(f"labels are not ImageNet's{shifted}: {wrong} (--classes-from FILE says another order)")
    if wrong or not seen or count > COUNT:
        return None
    if len(seen) == COUNT:
        rest = f"; {unknown:,} do not name theirs" if unknown else ""
        return f"{VERIFIED}: by the synsets in the names of {right:,} images{rest}"
    return f"labels are ImageNet's, by the synsets in the names of {right:,} images of {len(seen)} classes"
