"""The steps of a study: what each row needs, shared wherever rows need the same.

A step's identity is a hash of all it depends on (``identities.py``): its recipe or flags, the data's fingerprints, the
seed, and the identities of the steps before it. Steps with one identity are one step, in one folder, whoever needs it.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vfmtok.errors import WeightsError
from vfmtok.files import read_json
from vfmtok.study.config import CHECKOUT, StudyConfig
from vfmtok.study.identities import Contents, identity, said, without_seed
from vfmtok.study.rows import Changes, Row, split
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.recipe import TokenizerRecipe


@dataclass
class Step:
    """
    Attributes:
        kind: "tokenizer", "reconstruction", "codes", "held-out codes", "generator", "agreement", "generation" or
            "images".
        key: hash of all it depends on.
        pace: hash of what decides how fast it goes, which the seed does not.
        folder: of the step; what its command writes is in ``out`` below it.
        script: a script of the checkout, or a command of `vfmtok`; "" for what needs no process of its own.
        flags: for the command.
        recipe: of a training.
        parents: the steps that come before it.
        needed_by: (row, seed) of all that it serves.
    """

    kind: str
    key: str
    pace: str
    folder: Path
    script: str
    flags: list[str]
    recipe: TokenizerRecipe | GeneratorRecipe | None
    parents: tuple["Step", ...]
    seed: int
    needed_by: list[tuple[str, int]] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def is_training(self) -> bool:
        return self.recipe is not None

    @property
    def done(self) -> bool:
        return (read_json(self.folder / "step.json") or {}).get("done", False)

    @property
    def is_ready(self) -> bool:
        return all(parent.done for parent in self.parents)

    def for_people(self) -> str:
        """The rows that it serves: "VQGAN, + Frozen VFM (seeds 0, 1)"."""
        rows, seeds = (list(dict.fromkeys(column)) for column in zip(*self.needed_by, strict=True))
        return f"{', '.join(rows)} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"


@dataclass(frozen=True)
class Asked:
    """The command line of a study, kept with its numbers.

    Attributes:
        command: what does the whole study again, without its place and what was asked of one call.
        overrides: ``--set``, of the study.
        changes: ``--tokenizer-set`` and ``--generator-set``, of all rows.
    """

    command: str
    overrides: tuple[str, ...]
    changes: Changes


@dataclass(frozen=True)
class Data:
    """The images of a study."""

    path: Path
    train: int  # how many
    val: int
    fingerprints: tuple[str, str]
    num_classes: int


class Plan:
    """All steps of a study, in an order in which they can be done: seed by seed, in it row by row.

    Attributes:
        steps: each once.
        by_row: (row, seed) -> kind -> step.

    Raises:
        WeightsError: weights that a row names can't be read.
    """

    def __init__(self, study: StudyConfig, rows: list[Row], data: Data, folder: Path, asked: Asked):
        self.study, self.rows, self.data, self.folder, self.asked = study, rows, data, folder, asked
        self._by_key: dict[str, Step] = {}
        self._contents = Contents()
        self.by_row: dict[tuple[str, int], dict[str, Step]] = {}
        for seed in study.seeds:
            for row in rows:
                try:
                    self._plan(row, seed)
                except WeightsError as error:
                    raise WeightsError(f"row '{row.name}': {error}") from None

    @property
    def steps(self) -> list[Step]:
        return list(self._by_key.values())

    def of_rows(self, names: set[str]) -> list[Step]:
        return [step for step in self.steps if any(row in names for row, _ in step.needed_by)]

    def _plan(self, row: Row, seed: int) -> None:
        study, data = self.study, str(self.data.path)
        self._place, self.by_row[row.name, seed] = (row.name, seed), {}
        before: tuple[Step, ...] = ()
        if row.recipe is None:
            model = ["--vq-ckpt", row.config.weights, *self.weights_config(row)]
            weights = self._contents.of_weights(row.config.weights)
            facts = {"weights": weights, "tokenizer": self._contents.of_config(row.tokenizer)}
        else:
            run = dataclasses.replace(row.recipe.run, seed=seed)
            images = dataclasses.replace(row.recipe.data, path=data)
            recipe = dataclasses.replace(row.recipe, run=run, data=images)
            facts = {"recipe": self._contents.of_recipe(recipe), "data": self.data.fingerprints}
            before = (self._add("tokenizer", facts, "vq_train.py", [], recipe=recipe),)
            model, facts = ["--vq-ckpt", str(before[0].out)], {}
        facts = {**facts, "data": self.data.fingerprints}
        words, hashed = self._flags(study.reconstruction)
        flags = [*model, "--anno-file", data, *words]
        self._add("reconstruction", {**facts, "flags": hashed}, "vqgan_test.py", flags, before)
        if row.generator is not None:
            codes = {kind: self._codes(kind, row, facts, model, before) for kind in _caches_of(row)}
            generator = self._generator(row, seed, codes, facts, model, before)
            before = (*before, *codes.values(), generator)
            self._samples(row, codes, before, model)
        self._add("images", facts, "", model, before)

    def _codes(self, kind: str, row: Row, facts: dict[str, Any], model: list[str], before: tuple[Step, ...]) -> Step:
        split_name, flags = ("train", row.codes) if kind == "codes" else ("val", self.study.held_out_codes)
        words, hashed = self._flags(flags)
        step = self._add(kind, {**facts, "flags": hashed}, "codes", [], before)
        step.flags = [f"{self.data.path}/{split_name}_lmdb", str(step.out), *model, *words]
        return step

    def _generator(
        self,
        row: Row,
        seed: int,
        codes: dict[str, Step],
        facts: dict[str, Any],
        model: list[str],
        before: tuple[Step, ...],
    ) -> Step:
        """From the caches of codes, or where it learns from them from the images themselves."""
        model_config = dataclasses.replace(row.generator.generator, num_classes=self.data.num_classes)
        run = dataclasses.replace(row.generator.run, seed=seed)
        recipe = dataclasses.replace(row.generator, generator=model_config, run=run)
        paths = {"vq_ckpt": model[1], "vq_config": model[3] if len(model) > 2 else None}
        if row.learns_from_images:
            # Its crops count, the images by their fingerprints, and the tokenizer, which encodes at every step.
            facts = {**facts, "tokenizer": self._contents.of_config(row.tokenizer)}
            facts["recipe"] = self._contents.of_recipe(recipe)
            paths["path"] = str(self.data.path)
        else:
            facts, before = {"recipe": self._contents.of_recipe(recipe, data={})}, tuple(codes.values())
            paths |= {"code_path": str(codes["codes"].out), "val_code_path": str(codes["held-out codes"].out)}
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **paths))
        return self._add("generator", facts, "train_c2i.py", [], before, recipe)

    def _samples(self, row: Row, codes: dict[str, Step], before: tuple[Step, ...], model: list[str]) -> None:
        data, generator = str(self.data.path), before[-1]
        facts, seed = {"data": self.data.fingerprints}, ["--seed", str(self._place[1])]
        if row.agreement is not None:
            words, hashed = self._flags(row.agreement)
            cache = str(codes["codes"].out)
            flags = ["--gpt", str(generator.out), *model, "--data", data, "--code-path", cache, *seed, *words]
            self._add("agreement", {**facts, "flags": hashed}, "agreement", flags, before)
        if row.generation is not None:
            words, hashed = self._flags(row.generation)
            flags = ["--gpt-ckpt", str(generator.out), *model, *seed, *words]
            self._add("generation", {**facts, "flags": hashed}, "test_net.py", flags, before)

    def _flags(self, text: str) -> tuple[list[str], list[str]]:
        """Of a measuring step: as its command takes them, and as they are hashed, whatever the images' place."""
        return split(text, {"data": str(self.data.path)}), self._contents.of_flags(split(text, {}))

    def weights_config(self, row: Row) -> list[str]:
        """The configuration of given weights, kept in a file of its own: the row may have changed it."""
        return ["--transformer-config-file", str(self.folder / "configs" / f"{identity(said(row.tokenizer))}.yaml")]

    def _add(
        self,
        kind: str,
        facts: dict[str, Any],
        script: str,
        flags: list[str],
        parents: tuple[Step, ...] = (),
        recipe: Any = None,
    ) -> Step:
        """The step of these facts, for the row at hand too."""
        paced = {"kind": kind, **without_seed(facts)}  # a training's, which does not depend on how others went
        key = identity({"kind": kind, **facts, "parents": [parent.key for parent in parents]})
        if key not in self._by_key:
            folder = self.folder / "steps" / f"{kind.replace(' ', '-')}-{key}"
            seed = self._place[1]
            self._by_key[key] = Step(kind, key, identity(paced), folder, script, flags, recipe, parents, seed)
            place_of_output(self._by_key[key])
        step = self._by_key[key]
        step.needed_by.append(self._place)
        self.by_row[self._place][kind] = step
        return step


def _caches_of(row: Row) -> tuple[str, ...]:
    """Kinds of the steps that encode its images: for its generator, and to compare what that samples with them."""
    if not row.learns_from_images:
        return ("codes", "held-out codes")
    return ("codes",) if row.agreement is not None else ()


def place_of_output(step: Step) -> None:
    """Complete the flags with where the command writes; of a training the recipe says it."""
    flag = {"vqgan_test.py": "--output_dir", "agreement": "--out", "test_net.py": "--sample-dir"}.get(step.script)
    if flag is not None:
        step.flags = [*step.flags, flag, str(step.out)]
    if step.recipe is not None:
        run = dataclasses.replace(step.recipe.run, results_dir=str(step.out))
        step.recipe = dataclasses.replace(step.recipe, run=run)


def command_of(step: Step) -> list[str]:
    """What Python is given: a script of the checkout with flags, or a command of `vfmtok`."""
    if step.is_training:
        return [str(CHECKOUT / step.script), "--recipe", str(step.folder / "recipe.yaml")]
    if step.script.endswith(".py"):
        return [str(CHECKOUT / step.script), *step.flags]
    return ["-m", "vfmtok", step.script, *step.flags]
