"""The curves of training runs over each other: the first in colour, the others in greys behind it."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vfmtok.errors import ConfigError, DataError

Log = dict[str, tuple[list[int], list[float]]]  # name -> (steps, values)


@dataclass(frozen=True)
class Panel:
    """Drawn for every entry of ``names`` in log.jsonl that any of the runs has, and not as nothing but zeros.

    Attributes:
        latents: of generators of latents only, or of all others only; None: of all.
    """

    title: str
    unit: str
    names: tuple[str, ...]
    latents: bool | None = None

    def of(self, log: Log) -> list[str]:
        """Those of its names that the log has, if it is one of such a run."""
        fits = self.latents in (None, "loss/mse" in log)
        return [name for name in self.names if name in log and any(log[name][1])] if fits else []


PANELS = (
    Panel("pixel loss (training)", "weighted", ("loss/pixel",)),
    Panel("adversarial loss (training)", "generator, discriminator", ("loss/adversarial", "loss/discriminator")),
    Panel("token loss (training)", "nats per token", ("loss/token",), latents=False),
    Panel("velocity loss (training)", "mean squared error", ("loss/mse",)),
    Panel("held-out PSNR", "dB, uint8", ("validation/psnr", "validation/ema_psnr")),
    Panel("held-out token loss", "nats per token", ("validation/loss", "validation/ema_loss"), latents=False),
    Panel("held-out loss of latents", "all terms, weighted", ("validation/loss", "validation/ema_loss"), latents=True),
    Panel("codes in use", "share of a window", ("codebook/usage",)),
    Panel("codebook perplexity", "codes", ("codebook/perplexity",)),
    Panel("gradient norm", "before clipping", ("grad_norm/model",)),
    Panel("speed", "images per second", ("images_per_second",)),
)
GREYS = ("0.55", "0.7", "0.8")


def read_log(path: Path) -> Log:
    """name -> (steps, values), of what was finite. Raises DataError if there is no log at ``path`` or beside it."""
    file = path / "log.jsonl" if path.is_dir() else path
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        curves: Log = {}
        for line in lines:
            for name, value in line.items():
                if name not in ("step", "alarm") and value is not None:  # null: it was NaN or infinite
                    steps, values = curves.setdefault(name, ([], []))
                    steps.append(line["step"])
                    values.append(float(value))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is no log of a run: {error}") from None
    return curves


def draw_curves(logs: dict[str, Log], out: Path | BinaryIO) -> None:
    """One panel per quantity, one line per run and name. Raises ConfigError without matplotlib, or if ``out`` fails."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("curves need matplotlib: pip install 'vfmtok[train]'") from None
    panels = [panel for panel in PANELS if any(panel.of(log) for log in logs.values())]
    if not panels:
        raise DataError("the logs hold no curve yet")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        for number, (run_name, log) in reversed(list(enumerate(logs.items()))):
            for name in panel.of(log):
                place = panel.names.index(name)
                colour = f"C{place}" if number == 0 else GREYS[min(number - 1, len(GREYS) - 1)]
                label = f"{run_name}: {name.rpartition('/')[2]}"
                axis.plot(*log[name], ("-", "--")[place], color=colour, label=label, linewidth=1.4)
        axis.set(title=panel.title, xlabel="step", ylabel=panel.unit)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=6)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    try:
        figure.savefig(out, dpi=110)
    except (OSError, ValueError) as error:  # a full disk; a format matplotlib does not know
        raise ConfigError(f"cannot write {out}: {error}") from None


def draw_compared(logs: dict[str, list[Log]], names: tuple[str, ...]) -> bytes:
    """A PNG with one panel per title of ``PANELS`` in ``names``: a colour per group of runs, a line per run.

    Of what a run logged under several names (with its average weights, too) the last is drawn. b"" if no run logged
    any of it. Raises ConfigError without matplotlib.
    """
    everyone = [log for runs in logs.values() for log in runs]
    panels = [panel for panel in PANELS if panel.title in names and any(panel.of(log) for log in everyone)]
    if not panels:
        return b""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("curves need matplotlib: pip install 'vfmtok[train]'") from None
    figure = Figure(figsize=(4.8 * len(panels), 3.6), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, (group, runs) in enumerate(logs.items()):
            drawn = [log[name] for log in runs for name in panel.of(log)[-1:]]
            for place, curve in enumerate(drawn):
                axis.plot(*curve, color=f"C{number}", label=group if place == 0 else None, linewidth=1.3)
        axis.set(title=panel.title, xlabel="step", ylabel=panel.unit)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7)
    file = io.BytesIO()
    figure.savefig(file, dpi=100, format="png")
    return file.getvalue()
