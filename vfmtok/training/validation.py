"""Held-out images during training: PSNR, the perceptual distance, and a picture of reconstructions.

Shapes: B batch, S image side.
"""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vfmtok import distributed
from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import BlockOrder, evenly_spaced
from vfmtok.data.records import RecordDataset
from vfmtok.data.transforms import EvaluationCrop, to_unit_range
from vfmtok.metrics.pixels import psnr
from vfmtok.pictures.rows import draw_columns
from vfmtok.tokenizers.contract import Tokenizer, to_pixels
from vfmtok.training.objective import perceptual_distance
from vfmtok.training.run_log import RunLog
from vfmtok.training.state import RunState
from vfmtok.training.trained_parts import evaluating

if TYPE_CHECKING:
    from vfmtok.training.tokenizer_run import TokenizerRun

SHOWN = 8  # images of the picture


class HeldOut:
    """Up to ``count`` images, evenly spaced over a dataset and shared among processes, decoded once.

    Args:
        batch: images per pass.
    """

    def __init__(
        self, records: RecordDataset, size: int, count: int, batch: int, world: distributed.World, num_workers: int
    ):
        self.records, self.size, self.batch, self.world, self.num_workers = records, size, batch, world, num_workers
        self.count = min(count, len(records))
        self._images: Tensor | None = None  # this process's share

    @property
    def images(self) -> Tensor:
        """uint8 (n,3,S,S): every world-size-th of the chosen images."""
        if self._images is None:
            self.read()
        return self._images

    def read(self) -> None:
        """Decode this process's images. Raises DataError if too many are bad."""
        chosen = evenly_spaced(self.count, len(self.records))
        share = chosen[self.world.rank :: self.world.size]
        self._images = read_images(self.records, EvaluationCrop(self.size), share, self.num_workers)

    @torch.no_grad()
    def measure(
        self, tokenizer: Tokenizer, perceptual, autocast, between: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """PSNR in dB on uint8 pixels, the mean over images, and the perceptual distance if there is one.

        The tokenizer is in eval mode and quantizes. Every process must call it. ``between`` is called before every
        batch, equally often in all processes; what it raises, in all or none, ends the measurement.
        """
        sums = torch.zeros(3, dtype=torch.float64)  # of PSNR, of the distance, of images
        for part in self._batches():
            between()
            if not len(part):  # here are fewer images than elsewhere
                continue
            images = to_unit_range(part.to(self.world.device))  # (B,3,S,S)
            with autocast():
                out = tokenizer(images)
                distance = torch.zeros(()) if perceptual is None else perceptual_distance(perceptual, images, out)
            pixels = to_pixels(out.reconstruction, self.size).cpu().permute(0, 3, 1, 2)  # (B,3,S,S)
            decibels = psnr(part / 255.0, pixels / 255.0)  # (B,)
            sums += torch.tensor([decibels.sum(), float(distance) * len(part), len(part)], dtype=torch.float64)
        total_psnr, total_distance, count = distributed.sum_over_ranks(sums.to(self.world.device)).tolist()
        values = {"psnr": total_psnr / count}
        return values | ({"perceptual": total_distance / count} if perceptual is not None else {})

    def _batches(self) -> list[Tensor]:
        """As many in every process: the last may be empty in some."""
        most = -(-self.count // self.world.size)  # images of a process
        return [self.images[start : start + self.batch] for start in range(0, most, self.batch)]

    @torch.no_grad()
    def reconstruct(self, tokenizer: Tokenizer, autocast) -> np.ndarray:
        """The first shown images of this process, reconstructed: (n,S,S,3) uint8."""
        if not len(self.images):
            return self.originals()
        with autocast():
            out = tokenizer(to_unit_range(self.images[:SHOWN].to(self.world.device)))
        return to_pixels(out.reconstruction, self.size).cpu().numpy()

    def originals(self) -> np.ndarray:
        """(n,S,S,3) uint8."""
        return self.images[:SHOWN].permute(0, 2, 3, 1).numpy()


def validate(run: "TokenizerRun", log: RunLog, between: Callable[[], None]) -> None:
    """Measure and draw the weights and their average on held-out images."""
    state, held_out, tokenizer = run.state, run.held_out, run.tokenizer
    columns, metrics = {"input": held_out.originals()}, {}
    averages = {"": contextlib.nullcontext()}
    if state.ema is not None:
        averages["ema_"] = state.ema.swapped_in()
    for prefix, weights in averages.items():
        with weights, evaluating(tokenizer, run.recipe.train):
            values = held_out.measure(tokenizer, run.perceptual, run.autocast, between)
            columns[prefix + "reconstruction"] = held_out.reconstruct(tokenizer, run.autocast)
        metrics |= {f"{prefix}{name}": value for name, value in values.items()}
    state.metrics = {**metrics, **_quality(run, metrics), "step": state.step}
    log.scalars(state.step, {f"validation/{name}": value for name, value in metrics.items()})
    listed = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    images = f"{held_out.count} {run.held_out_name} images of {held_out.size} px"
    log.say(f"step {state.step}: {listed} ({images}; PSNR in dB on uint8)")
    log.picture(state.step, "reconstruction", draw_columns(columns, f"step {state.step}: {metrics['psnr']:.2f} dB"))


def best_metric(state: RunState, adversarial: bool) -> str:
    """The metric by which a run's best checkpoint is kept, more being better.

    PSNR of the weights that are taken from a checkpoint; but PSNR falls when the tokenizer begins to see a
    discriminator, so a run with one keeps the best "quality", which only validations after that have.
    """
    if adversarial:
        return "quality"
    return "psnr" if state.ema is None else "ema_psnr"


def _quality(run: "TokenizerRun", metrics: dict[str, float]) -> dict[str, float]:
    """Minus the perceptual distance, or PSNR without one, once the tokenizer sees the discriminator."""
    starts = [adversary.config.start for adversary in run.adversaries]
    if not starts or run.state.step <= max(starts):
        return {}
    prefix = "" if run.state.ema is None else "ema_"
    return {"quality": -metrics[f"{prefix}perceptual"] if run.perceptual is not None else metrics[f"{prefix}psnr"]}


def read_images(records: RecordDataset, transform, indices: np.ndarray, num_workers: int) -> Tensor:
    """Crops (n,3,S,S) uint8 of the records at ``indices``, in their order."""
    return read_samples(records, transform, indices, num_workers)[0]


def read_samples(records: RecordDataset, transform, indices: np.ndarray, num_workers: int) -> tuple[Tensor, Tensor]:
    """The same with labels (n,) int64; in the place of a bad record is the next good one, with its own label."""
    if not len(indices):
        empty = torch.empty(0, 3, transform.size, transform.size, dtype=torch.uint8)
        return empty, torch.empty(0, dtype=torch.int64)
    blocks = [indices[start : start + 64] for start in range(0, len(indices), 64)]
    loader = ImageLoader(records, transform, BlockOrder(blocks), num_workers=min(num_workers, len(blocks)))
    try:
        batches = [(batch.images.contiguous(), batch.labels) for batch in loader]
        return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])
    finally:
        loader.close()
