"""What the training of a tokenizer works with, built from its recipe. The loop is in ``train_tokenizer.py``."""

import contextlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vfmtok import distributed
from vfmtok.data.dataset_folder import open_for_training
from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import SampleOrder
from vfmtok.data.transforms import EvaluationCrop, RandomCrop, to_unit_range
from vfmtok.decoders.vqgan import ResBlock
from vfmtok.discriminators.build import build_discriminator
from vfmtok.layers.precision import autocast
from vfmtok.losses.adversarial import LeCam
from vfmtok.pictures.rows import draw_columns
from vfmtok.pretrained import loading as pretrained
from vfmtok.tokenizers.vfmtok.model import VFMTok
from vfmtok.tokenizers.vfmtok.region_sampler import SamplerLayer
from vfmtok.tokenizers.vfmtok.vit_decoder import DecoderLayer
from vfmtok.training import codebook_care, passes, run_folder
from vfmtok.training.codebook_care import CodebookCare
from vfmtok.training.ema import EMA
from vfmtok.training.health import SkippedSteps
from vfmtok.training.objective import (
    DiscriminatorPass,
    TokenizerObjective,
    build_perceptual,
    checkpoint_activations,
)
from vfmtok.training.optimizer import Stepper, build_optimizer
from vfmtok.training.recipe import Plan, TokenizerRecipe
from vfmtok.training.run_log import RunLog
from vfmtok.training.state import RunState
from vfmtok.training.validation import HeldOut, read_images
from vfmtok.weights.checkpoint import CheckpointFolder, seed_step
from vfmtok.weights.name_maps import own_tensors


class TokenizerRun:
    """Everything the loop works with, built from the recipe.

    Args:
        start_from: a checkpoint folder of another run to continue from, if this run has none of its own.
        finetune_from: weights to begin with, ours or released.

    Raises:
        VFMTokError: whatever can be found wrong before the first step.
    """

    def __init__(
        self,
        recipe: TokenizerRecipe,
        world: distributed.World,
        start_from: Path | None = None,
        finetune_from: Path | None = None,
    ):
        self.recipe, self.world = recipe, world
        self.folder = Path(recipe.run.results_dir).expanduser()
        with distributed.together():  # what one process alone may fail at ends before all do something together
            self._build(finetune_from)
        self.notes += run_folder.resume(self.state, self.checkpoints, start_from, self.plan.steps, world)
        if recipe.run.checkpoint_activations:
            checkpoint_activations(self.tokenizer, (SamplerLayer, DecoderLayer, ResBlock))
        if recipe.run.compile:
            self.tokenizer.compile()
        self.model = passes.wrap(self.tokenizer, world)
        self.judge = (
            passes.wrap(DiscriminatorPass(self.discriminator), world) if self.discriminator is not None else None
        )

    def _build(self, finetune_from: Path | None) -> None:
        """Data, modules and optimizers, in this process alone."""
        recipe, run, world = self.recipe, self.recipe.run, self.world
        held_out_path = None if recipe.data.val_path is None else Path(recipe.data.val_path).expanduser()
        self.records, held_out = open_for_training(Path(recipe.data.path).expanduser(), held_out_path)
        self.plan = Plan.of(recipe.optimizer, run, len(self.records), world.size)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = run.tf32
        seed_step(run.seed, -1, 0)  # the first weights
        self.tokenizer = VFMTok(recipe.tokenizer)
        self.notes: list[str] = []  # for people
        best = "ema_psnr" if recipe.ema.enabled else "psnr"  # of the weights that are taken from a checkpoint
        self.checkpoints = CheckpointFolder(self.folder / "checkpoints", run.keep, best)
        if finetune_from is not None and not self.checkpoints.steps():  # else it is this run that goes on
            self.notes += pretrained.load_matching(self.tokenizer, pretrained.read_weights(finetune_from, "tokenizer"))
        self.tokenizer.to(world.device).train()
        self._synchronise_batch_norm()
        self.perceptual = build_perceptual(recipe.loss, self.tokenizer)
        self.discriminator, self.lecam = self._build_discriminator()
        for module in (self.perceptual, self.discriminator, self.lecam):
            if module is not None:
                module.to(world.device)
        self.state = self._build_state()
        self.care = self.state.tensors["codebook"]
        self.skipped = self.state.numbers["skipped"]
        self.objective = TokenizerObjective(
            recipe.loss, recipe.adversarial, self.tokenizer, self.perceptual, self.discriminator
        )
        self.held_out = HeldOut(
            held_out or self.records,
            recipe.tokenizer.image_size,
            run.validation_images,
            self.plan.micro_batch,
            world,
            recipe.data.num_workers,
        )
        self.held_out_name = "held-out" if held_out is not None else "training (there is no held-out set)"

    def _synchronise_batch_norm(self) -> None:
        """Of an encoder that is trained too. Frozen ones keep their statistics, other parts have none."""
        encoder = self.tokenizer.encoder
        has_any = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules())
        if self.world.size == 1 or encoder.config.frozen or not has_any:
            return
        if self.world.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(encoder)  # in place, below the top
        else:
            self.notes.append(
                "batch norm of the encoder sees one process's images: PyTorch synchronises it on GPUs only"
            )

    def _build_discriminator(self) -> tuple[nn.Module | None, LeCam | None]:
        config = self.recipe.adversarial
        if config.discriminator == "none":
            return None, None
        if config.learns_from >= self.plan.steps:  # it would never be asked
            self.notes.append(
                f"no {config.discriminator} discriminator: it would learn from step {config.learns_from}, the run has "
                f"{self.plan.steps} (--disc-start)"
            )
            return None, None
        discriminator = build_discriminator(config.discriminator, self.recipe.tokenizer.image_size, config.weights)
        return discriminator, LeCam() if config.lecam_weight else None

    def _build_state(self) -> RunState:
        recipe, modules, steppers = self.recipe, {"model": self.tokenizer}, {}
        if self.discriminator is not None:
            modules["discriminator"] = self.discriminator
        for name, module in modules.items():
            learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
            optimizer = build_optimizer(recipe.optimizer, learned)
            scaled = recipe.run.precision == "fp16"
            steppers[name] = Stepper(optimizer, learned, recipe.optimizer.max_grad_norm, scaled)
        if self.lecam is not None:
            modules["lecam"] = self.lecam
        ema = EMA(own_tensors(self.tokenizer), recipe.ema.decay, recipe.ema.warmup) if recipe.ema.enabled else None
        care = CodebookCare(
            self.tokenizer.quantizer,
            [ema.average[name] for name in ("quantizer.codebook",) if ema is not None and name in ema.average],
            steppers["model"].optimizer,
            recipe.codebook,
            recipe.run.global_batch * recipe.tokenizer.code.num_tokens,
            recipe.run.seed,
            self.world.device,
        )
        resolved = TokenizerRecipe(**{**vars(recipe), "tokenizer": self.tokenizer.config})
        skipped = SkippedSteps(self.world.device)
        return RunState(
            resolved,
            "tokenizer",
            modules,
            steppers,
            ema,
            tensors={"codebook": care},
            numbers={"skipped": skipped},
            data={"samples": len(self.records), "fingerprint": self.records.fingerprint},
        )

    # ---- what the loop asks for ------------------------------------------------------------

    def autocast(self) -> contextlib.AbstractContextManager:
        return autocast(self.recipe.run.precision, self.world.device)

    def loader(self) -> ImageLoader:
        recipe, size = self.recipe, self.recipe.tokenizer.image_size
        crop = RandomCrop(size, recipe.run.seed, recipe.data.flip, centred=recipe.data.crop == "center")
        order = SampleOrder(
            len(self.records),
            recipe.run.global_batch,
            recipe.run.seed,
            world_size=self.world.size,
            rank=self.world.rank,
        )
        return ImageLoader(
            self.records, crop, order, samples_seen=self.state.samples_seen, num_workers=recipe.data.num_workers
        )

    def start_codebook(self) -> None:
        """The codebook becomes the k-means centres of latents of training images, the same set for any world."""
        config = self.tokenizer.config
        wanted = codebook_care.LATENTS_PER_CODE * config.code.largest_codebook // config.code.num_tokens + 1
        count = min(wanted, len(self.records))
        per_process = -(-count // self.world.size)  # equal shares: the last ones begin again at the first image
        chosen = np.arange(per_process * self.world.size) % count * len(self.records) // count
        share = chosen[self.world.rank * per_process :][:per_process]
        images = read_images(self.records, EvaluationCrop(config.image_size), share, self.recipe.data.num_workers)
        self.tokenizer.eval()
        latents = []
        with torch.no_grad(), self.autocast():
            for part in images.split(self.plan.micro_batch):
                latents.append(self.tokenizer.encode(to_unit_range(part.to(self.world.device))).latents.flatten(0, 1))
        self.tokenizer.train()
        all_latents = distributed.gather_rows(torch.cat(latents))  # (images * K,E)
        self.care.start_codebook(all_latents[: count * config.code.num_tokens])

    def validate(self, log: RunLog) -> None:
        """Measure and draw the weights and their average on held-out images."""
        step = self.state.step
        self.tokenizer.eval()
        columns, metrics = {"input": self.held_out.originals()}, {}
        averages = {"": contextlib.nullcontext()}
        if self.state.ema is not None:
            averages["ema_"] = self.state.ema.swapped_in()
        for prefix, weights in averages.items():
            with weights:
                values = self.held_out.measure(self.tokenizer, self.perceptual, self.autocast)
                columns[prefix + "reconstruction"] = self.held_out.reconstruct(self.tokenizer, self.autocast)
            metrics |= {f"{prefix}{name}": value for name, value in values.items()}
        self.tokenizer.train()
        self.state.metrics = {**metrics, "step": step}
        log.scalars(step, {f"validation/{name}": value for name, value in metrics.items()})
        size, count = self.held_out.size, self.held_out.count
        told = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        log.say(f"step {step}: {told} ({count} {self.held_out_name} images of {size} px; PSNR in dB on uint8)")
        log.picture(step, "reconstruction", draw_columns(columns, f"step {step}: {metrics['psnr']:.2f} dB"))
