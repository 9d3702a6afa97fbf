"""Which split a folder or file belongs to by its name, and what ``--split`` changes.

The words are those of the ``datasets`` library's imagefolder, in any case, alone or with anything but letters around
them: "Train", "val2017", "test-00000-of-00003". A split is "train", "val" or "test"; "test" is left out.
"""

import re
from collections.abc import Iterable, Sequence

from vfmtok.errors import DataError

WORDS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
SPLITS = ("train", "val", "test")


class SplitNames:
    """The words above, with what the user says.

    Args:
        rules: of ``--split``: NAME=SPLIT, where NAME is a split ("test=val") or the name of a folder or source; or
            "none": names are no splits.

    Raises:
        DataError: a rule is none of these.
    """

    def __init__(self, rules: Sequence[str] = ()):
        self._off = "none" in rules
        self._rules: dict[str, str] = {}
        self._used: set[str] = set()
        for rule in rules:
            name, equals, split = (word.strip().lower() for word in rule.partition("="))
            if rule == "none" and len(rules) == 1:
                continue
            if not equals or not name or split not in SPLITS:
                raise DataError(f"--split takes NAME=train, NAME=val, NAME=test (left out) or none, got '{rule}'")
            self._rules[name] = split

    def of_folder(self, name: str) -> str | None:
        """The split of a folder that is called after one, as a whole."""
        name = name.lower()
        return self._chosen(name, WORDS.get(name))

    def of_file(self, name: str) -> str | None:
        """The split that a word of the name says."""
        return self._chosen(name.lower(), next((WORDS[word] for word in _words(name) if word in WORDS), None))

    def of_folders(self, names: Iterable[str], where: str) -> dict[str, str] | None:
        """The splits of folders that lie beside each other, or None if they are classes.

        Raises:
            DataError: some are splits for certain and others are not.
        """
        names = set(names)
        exact = {name: split for name in names if (split := self.of_folder(name))}
        if len(exact) == len(names):
            return exact
        like = {name: split for name in names if (split := self.of_file(name))}
        rests = {" ".join(word for word in _words(name) if word not in WORDS) for name in like.keys() - exact.keys()}
        if len(like) == len(names) and len(rests) == 1 and (len(set(like.values())) > 1 or exact):
            return like
        if len(set(exact.values())) > 1:
            odd = min(names - exact.keys())
            raise DataError(
                f"{where}: {' and '.join(sorted(exact))} are splits, but what is {odd}? Say --split {odd}=train, "
                f"{odd}=val or {odd}=test (left out), or --split none if all are classes"
            )
        return None

    def check_used(self) -> None:
        """Raises DataError for a rule that nothing was named by."""
        unused = next((name for name in self._rules if name not in self._used), None)
        if unused is not None:
            raise DataError(f"--split {unused}={self._rules[unused]}: no folder, source or split is called {unused}")

    def _chosen(self, name: str, split: str | None) -> str | None:
        rule = next((word for word in (name, None if self._off else split) if word in self._rules), None)
        if rule is not None:
            self._used.add(rule)
            return self._rules[rule]
        return None if self._off else split


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", name.lower())
