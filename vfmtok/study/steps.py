"""The steps of a study: what each row needs, shared wherever rows need the same.

A step's identity is a hash of all it depends on: its recipe or flags, the data's fingerprints, the seed, and the
identities of the steps before it. Steps with one identity are one step, in one folder, whoever needs it. Settings that
change nothing that is learned (how often a log is written, say) are no part of it, nor is what a recipe leaves at its
default: a later version's new field makes no step another one.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vfmtok.config import config_to_dict
from vfmtok.files import read_json
from vfmtok.study.config import CHECKOUT, StudyConfig
from vfmtok.study.rows import Row, split
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.recipe import TokenizerRecipe

NOT_LEARNED = ("results_dir", "log_every", "save_every", "keep", "tensorboard", "wandb", "new_data")  # of ``run``


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
    """

    def __init__(self, study: StudyConfig, rows: list[Row], data: Data, folder: Path):
        self.study, self.rows, self.data, self.folder = study, rows, data, folder
        self._by_key: dict[str, Step] = {}
        self.by_row: dict[tuple[str, int], dict[str, Step]] = {}
        for seed in study.seeds:
            for row in rows:
                self._plan(row, seed)

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
            facts = {"weights": row.config.weights, "tokenizer": said(row.tokenizer)}
        else:
            run = dataclasses.replace(row.recipe.run, seed=seed)
            images = dataclasses.replace(row.recipe.data, path=data)
            recipe = dataclasses.replace(row.recipe, run=run, data=images)
            facts = {"recipe": learned(recipe), "data": self.data.fingerprints}
            before = (self._add("tokenizer", facts, "vq_train.py", [], recipe=recipe),)
            model, facts = ["--vq-ckpt", str(before[0].out)], {}
        words = split(study.reconstruction, {"data": data})
        facts = {**facts, "data": self.data.fingerprints}
        self._add(
            "reconstruction", {**facts, "flags": words}, "vqgan_test.py", [*model, "--anno-file", data, *words], before
        )
        codes = []
        if row.generator is not None:
            for kind, split_name, flags in (
                ("codes", "train", study.codes),
                ("held-out codes", "val", study.held_out_codes),
            ):
                words = [*model, *split(flags, {"data": data})]
                codes.append(self._add(kind, {**facts, "flags": words[len(model) :]}, "codes", words, before))
                codes[-1].flags = [f"{data}/{split_name}_lmdb", str(codes[-1].out), *words]
            before = (*before, *codes, self._generator(row, seed, codes, model))
            self._samples(row, codes[0], before, model)
        self._add("images", facts, "", model, before)

    def _generator(self, row: Row, seed: int, codes: list[Step], model: list[str]) -> Step:
        paths = {"code_path": str(codes[0].out), "val_code_path": str(codes[1].out), "vq_ckpt": model[1]}
        if len(model) > 2:
            paths["vq_config"] = model[3]
        recipe = dataclasses.replace(
            row.generator,
            generator=dataclasses.replace(row.generator.generator, num_classes=self.data.num_classes),
            run=dataclasses.replace(row.generator.run, seed=seed),
            data=dataclasses.replace(row.generator.data, **paths),
        )
        facts = {"recipe": learned(recipe, data={})}
        return self._add("generator", facts, "train_c2i.py", [], tuple(codes), recipe)

    def _samples(self, row: Row, codes: Step, before: tuple[Step, ...], model: list[str]) -> None:
        data, generator = str(self.data.path), before[-1]
        facts, seed = {"data": self.data.fingerprints}, ["--seed", str(self._place[1])]
        if self.study.agreement is not None:
            words = split(self.study.agreement, {"data": data})
            flags = ["--gpt", str(generator.out), *model, "--data", data, "--code-path", str(codes.out), *seed, *words]
            self._add("agreement", {**facts, "flags": words}, "agreement", flags, before)
        if row.generation is not None:
            words = split(row.generation, {"data": data})
            flags = ["--gpt-ckpt", str(generator.out), *model, *seed, *words]
            self._add("generation", {**facts, "flags": words}, "test_net.py", flags, before)

    def weights_config(self, row: Row) -> list[str]:
        """The configuration of given weights, kept in a file of its own: the row may have changed it."""
        return ["--transformer-config-file", str(self.folder / "configs" / f"{_hash(said(row.tokenizer))}.yaml")]

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
        paced = {"kind": kind, **_without_seed(facts)}  # a training's, which does not depend on how others went
        key = _hash({"kind": kind, **facts, "parents": [parent.key for parent in parents]})
        if key not in self._by_key:
            folder = self.folder / "steps" / f"{kind.replace(' ', '-')}-{key}"
            seed = self._place[1]
            self._by_key[key] = Step(kind, key, _hash(paced), folder, script, flags, recipe, parents, seed)
            place_of_output(self._by_key[key])
        step = self._by_key[key]
        step.needed_by.append(self._place)
        self.by_row[self._place][kind] = step
        return step


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


# --------------------------------------------------------------------------------------
# Identities
# --------------------------------------------------------------------------------------


def learned(recipe: Any, **instead: Any) -> dict[str, Any]:
    """What a training recipe says, without what changes nothing that is learned; sections ``instead`` of its own."""
    found = said(recipe)
    run = {key: value for key, value in found.get("run", {}).items() if key not in NOT_LEARNED}
    data = {k: v for k, v in found.get("data", {}).items() if k not in ("path", "val_path", "num_workers")}
    return {**found, "run": run, "data": data, **instead}


def said(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their defaults, sections likewise."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            inner = said(value)
            if inner or item.default is None:
                found[item.name] = inner
        elif item.name == "kind" or value != _default(item):
            found[item.name] = value
    return config_to_dict_of(found)


def config_to_dict_of(tree: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it: tuples become lists, and sections in them dicts."""
    return json.loads(json.dumps(tree, default=config_to_dict))


def _default(item: dataclasses.Field) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


def _without_seed(facts: dict[str, Any]) -> dict[str, Any]:
    recipe = facts.get("recipe")
    if recipe is None:
        return facts
    return {**facts, "recipe": {**recipe, "run": {k: v for k, v in recipe["run"].items() if k != "seed"}}}


def _hash(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]
