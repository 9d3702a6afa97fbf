"""From counted operations to time, cost and advice: the arithmetic of `vfmtok info RECIPE --on h100x8`.

    operation  = max(FLOPs / (rate of its precision x utilisation), bytes / (bandwidth of the memory x STREAMED))
    passes     = sum over the operations of a micro-batch x accumulation
    optimizer  = bytes that AdamW, clipping and the average read and write / (bandwidth x STREAMED)
    talk       = bytes that a process sends / link, hidden behind the passes as far as it is shorter
    step       = max(passes, talk) + optimizer
    days       = steps x step

Three numbers are assumed: the share of their rate that products reach (``utilisation``), the share of the bandwidth
that other operations reach, and which part of the bytes of those is left where ``run.compile`` fuses them. What is not
in it: reading and decoding images, launches, Muon's products, the gradients that adaptive weights are
ratios of, validation, checkpoints. ``PUBLISHED`` says what real runs reached.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vfmtok.errors import ConfigError
from vfmtok.forecast.machines import GPUS, Machines
from vfmtok.forecast.memory import VALUE, Memory, Setting, memory_of
from vfmtok.forecast.operations import at
from vfmtok.forecast.training_pass import TrainingPass, training_pass
from vfmtok.training.generator_recipe import GeneratorRecipe
from vfmtok.training.recipe import Plan, RunConfig, TokenizerRecipe

IMAGENET = 1_281_167  # images
UTILISATION = 0.6  # of the rate that the maker states, by products
STREAMED = 0.8  # of the memory's bandwidth, by what has no products
FUSED = 0.4  # of the bytes of these, with run.compile
# Values that an optimizer step reads and writes of each trained one: clipping 3 (the norm; the scaled gradient), AdamW
# 7 (weight, gradient, two moments; three of them written), the average 3.
OPTIMIZER_VALUES = 13


@dataclass(frozen=True)
class Published:
    """How long a published run took.

    Attributes:
        section: of the recipe, "tokenizer" or "generator".
        flops: of an image in training, as counted here from ``recipe``.
    """

    name: str
    section: str
    recipe: str
    machines: Machines
    hours: float
    images: float
    flops: float

    @property
    def of_peak(self) -> float:
        return self.images * self.flops / (3600 * self.hours * self.machines.count * self.machines.gpu.bf16)


PUBLISHED = (
    Published(
        "VFMTok's tokenizer", "tokenizer", "configs/vfmtok/tokenizer.yaml", Machines(GPUS["h800"], 16), 36.0,
        50 * IMAGENET, 1877.4e9,
    ),
    Published(
        "VFMTok's GPT-L", "generator", "configs/vfmtok/gpt_l.yaml", Machines(GPUS["h800"], 8), 19.4,
        300 * IMAGENET, 521.8e9,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    """What a training takes.

    Attributes:
        flops: of a step, of all GPUs, activations that are computed again included.
        step: seconds, of which ``passes``, ``talk`` (hidden behind them or not) and ``optimizer``.
        compiled: the seconds of the passes with ``run.compile``; equal to ``passes`` if the recipe has it.
        days, cost: of the whole run; dollars.
        of_peak: FLOPs / (seconds x the GPUs' rate in bf16): what is called MFU.
        memory: of a process.
        advice: changes of the recipe with which it would fit, and what each needs: (text, bytes). Empty if it fits.
    """

    machines: Machines
    recipe: TokenizerRecipe | GeneratorRecipe
    plan: Plan
    setting: Setting
    utilisation: float
    flops: float
    passes: float
    compiled: float
    talk: float
    optimizer: float
    memory: Memory
    advice: list[tuple[str, float]]

    @property
    def step(self) -> float:
        return self._step(self.passes)

    @property
    def step_compiled(self) -> float:
        return self._step(self.compiled)

    def _step(self, passes: float) -> float:
        return max(passes, self.talk) + self.optimizer

    @property
    def days(self) -> float:
        return self.plan.steps * self.step / 86400

    @property
    def days_compiled(self) -> float:
        return self.plan.steps * self.step_compiled / 86400

    @property
    def cost(self) -> float:
        return 24 * self.days * self.machines.count * self.machines.gpu.price

    @property
    def of_peak(self) -> float:
        return self.flops / (self.step * self.machines.count * self.machines.gpu.bf16)

    @property
    def published(self) -> Published:
        """The published run of such a training that is compared with."""
        section = "tokenizer" if isinstance(self.recipe, TokenizerRecipe) else "generator"
        return next(run for run in PUBLISHED if run.section == section)

    @property
    def days_as_published(self) -> float:
        """At the share of the peak that the published run reached."""
        return self.days * self.of_peak / self.published.of_peak

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.machines.gpu.memory


def predict(
    recipe: TokenizerRecipe | GeneratorRecipe,
    machines: Machines,
    images: int = IMAGENET,
    utilisation: float = UTILISATION,
    found: TrainingPass | None = None,
) -> Prediction:
    """What training by ``recipe`` on ``images`` images takes. Raises VFMTokError as the training would.

    Args:
        found: the recipe's pass, if it has been counted already. It is that of ``in_precision(recipe)``.
    """
    recipe = in_precision(recipe)
    plan = Plan.of(recipe.optimizer, recipe.run, images, machines.count)
    if plan.micro_batch < 1:
        raise ConfigError(f"run.global_batch {recipe.run.global_batch} is less than one image for each GPU")
    found = training_pass(recipe) if found is None else found
    fsdp = getattr(recipe, "parallel", "ddp") == "fsdp" and machines.count > 1
    bf16 = recipe.run.precision == "bf16"
    recompute = recipe.run.checkpoint_activations and found.recomputes
    muon = recipe.optimizer.name == "muon"
    setting = Setting(
        machines.count, plan.micro_batch, recompute, fsdp, bf16, recipe.ema.enabled, muon, recipe.run.async_save
    )
    memory = memory_of(found, setting)
    advice = [] if memory.total <= machines.gpu.memory else list(_advice(found, recipe, setting, machines))
    passes = compiled = _passes_seconds(found, setting, machines, recipe.run, utilisation)
    if not recipe.run.compile:
        compiled = _passes_seconds(found, setting, machines, dataclasses.replace(recipe.run, compile=True), utilisation)
    return Prediction(
        machines, recipe, plan, setting, utilisation,
        found.counted.flops(plan.micro_batch, recompute) * recipe.run.accumulation * machines.count,
        passes * recipe.run.accumulation,
        compiled * recipe.run.accumulation,
        _talk_seconds(found, setting, machines, recipe.run.accumulation),
        _optimizer_seconds(found, setting, machines),
        memory, advice,
    )  # fmt: skip


def in_precision(recipe: TokenizerRecipe | GeneratorRecipe) -> TokenizerRecipe | GeneratorRecipe:
    """With "auto" decided as all GPUs of the table would: bf16."""
    if recipe.run.precision != "auto":
        return recipe
    return dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, precision="bf16"))


def _passes_seconds(
    found: TrainingPass, setting: Setting, machines: Machines, run: RunConfig, utilisation: float
) -> float:
    """Of one micro-batch."""
    gpu, batch, seconds = machines.gpu, setting.batch, 0.0
    full, fused = gpu.tf32 if run.tf32 else gpu.fp32, FUSED if run.compile else 1.0
    for operation in found.counted.operations:
        rate = (full if operation.dtype == torch.float32 else gpu.bf16) * utilisation
        moved = at(operation.bytes, batch) * (fused if operation.dtype is None else 1.0)
        bound = max(at(operation.flops, batch) / rate, moved / (gpu.bandwidth * STREAMED))
        seconds += bound * (2 if setting.recompute and operation.recomputed else 1)
    return seconds


def _trained_bytes(found: TrainingPass) -> int:
    modules = (found.model, *found.beside)
    return VALUE * sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


def _optimizer_seconds(found: TrainingPass, setting: Setting, machines: Machines) -> float:
    shares = setting.processes if setting.fsdp else 1
    return OPTIMIZER_VALUES * _trained_bytes(found) / shares / (machines.gpu.bandwidth * STREAMED)


def _talk_seconds(found: TrainingPass, setting: Setting, machines: Machines, accumulation: int) -> float:
    """A ring sends (n-1)/n of the bytes to gather them or to sum them into slices, twice as much to do both."""
    ring = (setting.processes - 1) / setting.processes
    if not setting.fsdp:  # gradients are summed once a step
        return 2 * ring * _trained_bytes(found) / machines.link
    weights = sum(parameter.numel() for parameter in found.model.parameters()) * (2 if setting.bf16 else VALUE)
    return ring * (2 * accumulation * weights + _trained_bytes(found)) / machines.link


def _advice(
    found: TrainingPass, recipe: TokenizerRecipe | GeneratorRecipe, setting: Setting, machines: Machines
) -> Iterator[tuple[str, float]]:
    """Changes, one after the other on top of each other, up to the first that fits."""
    changes: list[tuple[str, dict]] = []
    if found.recomputes and not setting.recompute:
        changes.append(("run.checkpoint_activations=true", {"recompute": True}))
    if hasattr(recipe, "parallel") and not setting.fsdp and machines.count > 1:
        changes.append(("parallel=fsdp", {"fsdp": True}))
    batch, passes = setting.batch, recipe.run.accumulation
    for divisor in range(2, batch + 1):
        if batch % divisor == 0:
            changes.append((f"run.accumulation={passes * divisor}", {"batch": batch // divisor}))
    said: list[str] = []
    for text, change in changes:
        setting = dataclasses.replace(setting, **change)
        said = [line for line in said if line.partition("=")[0] != text.partition("=")[0]] + [text]
        total = memory_of(found, setting).total
        if total <= machines.gpu.memory or text == changes[-1][0]:
            yield " ".join(f"--set {line}" for line in said), total
            return
