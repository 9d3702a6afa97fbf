"""What a run logs: log.jsonl, TensorBoard (wandb if asked for), pictures, and a progress bar. First process only.

Nothing that goes wrong here stops a run, be it a full disk or a terminal that is gone: what can't be written is
reported once and left.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from vfmtok.errors import ConfigError
from vfmtok.files import replacing
from vfmtok.training.recipe import RunConfig

_INFINITE = (float("inf"), float("-inf"))  # with NaN, what JSON does not know


class RunLog:
    """
    Args:
        folder: of the run.
        active: False in all processes but the first, where every method does nothing.
        step: where the run begins: what an interrupted run logged beyond it is forgotten.
        total_steps, samples_per_step: for the progress bar.
        config: plain values, for wandb.

    Raises:
        ConfigError: wandb is asked for and not installed.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        *,
        active: bool,
        step: int,
        total_steps: int,
        samples_per_step: int,
        recipe: dict[str, Any],
    ):
        self.folder, self.active, self._failed = folder, active, False
        self._tensorboard = self._wandb = self._bar = None
        if not active:
            return
        self._file = folder / "log.jsonl"
        self._guarded(self._forget_after, step)
        if config.tensorboard:
            self._tensorboard = self._guarded(_open_tensorboard, folder / "tensorboard", step)
        if config.wandb is not None:
            self._wandb = _open_wandb(config.wandb, folder, recipe)
        self._bar = self._guarded(
            tqdm,
            file=_LossyStream(sys.stderr),
            total=total_steps * samples_per_step,
            initial=step * samples_per_step,
            unit="image",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.05,
        )
        self._samples_per_step = samples_per_step

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._guarded(self._bar.update, self._samples_per_step)

    def scalars(self, step: int, values: dict[str, float], shown: str = "") -> None:
        """Numbers by name after ``step`` steps; ``shown`` goes beside the progress bar."""
        if not self.active:
            return
        if shown and self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
        self._guarded(self._append, {"step": step, **values})
        if self._tensorboard is not None:
            for name, value in values.items():
                self._guarded(self._tensorboard.add_scalar, name, value, step)
        if self._wandb is not None:
            self._guarded(self._wandb.log, values, step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Kept as pictures/<name>_<step>.png."""
        if not self.active:
            return
        self._guarded(self._save_picture, self.folder / "pictures" / f"{name}_{step:07d}.png", image)
        if self._tensorboard is not None:
            self._guarded(self._tensorboard.add_image, name, np.asarray(image), step, dataformats="HWC")
        if self._wandb is not None:
            self._guarded(self._log_picture, step, name, image)

    def say(self, text: str) -> None:
        """A line for people, above the progress bar."""
        if self.active:
            self._guarded(_say, text)

    def alarm(self, step: int, text: str) -> None:
        """A line that wants attention; also in log.jsonl."""
        self.say(f"ALARM at step {step}: {text}")
        if self.active:
            self._guarded(self._append, {"step": step, "alarm": text})

    def close(self) -> None:
        for part in (self._bar, self._tensorboard):
            if part is not None:
                self._guarded(part.close)
        if self._wandb is not None:
            self._guarded(self._wandb.finish)

    # ---- files -----------------------------------------------------------------------------

    def _guarded(self, call, *args, **kwargs):
        try:
            return call(*args, **kwargs)
        except Exception as error:  # wandb and TensorBoard raise of their own
            if not self._failed:
                self._failed = True
                print(f"warning: logging fails, training continues: {error}", file=_LossyStream(sys.stderr))
            return None

    def _append(self, entry: dict[str, Any]) -> None:
        plain = {name: None if value != value or value in _INFINITE else value for name, value in entry.items()}
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")

    def _forget_after(self, step: int) -> None:
        """Drop lines of steps that will be run again, and a last line that was cut."""
        if not self._file.exists():
            return
        kept = []
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        with replacing(self._file) as part:
            part.write_text("".join(kept), encoding="utf-8")

    def _save_picture(self, file: Path, image: Image.Image) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, sync=False) as part:
            image.save(part, "PNG")

    def _log_picture(self, step: int, name: str, image: Image.Image) -> None:
        import wandb

        self._wandb.log({name: wandb.Image(image)}, step)


class _LossyStream:
    """Drops writes that fail, so that a closed pipe or a full disk never stops training.

    tqdm keeps its lock where a write fails, which others then wait for; and a warning has nowhere else to go.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:  # tqdm looks whether it is stderr
        return self._stream == other

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def _open_tensorboard(folder: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("TensorBoard is not installed (pip install 'vfmtok[train]'): logging to log.jsonl only", file=sys.stderr)
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _open_wandb(project: str, folder: Path, recipe: dict[str, Any]):
    try:
        import wandb
    except ImportError:
        raise ConfigError("run.wandb needs the package wandb: pip install wandb") from None
    name = "-".join(folder.resolve().parts[-3:])  # the same folder is the same run
    try:
        return wandb.init(project=project, dir=str(folder), config=recipe, id=name, resume="allow")
    except Exception as error:  # no key, no network: errors of its own, some of several lines
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"wandb can't be used ({reason}): the run continues without it", file=_LossyStream(sys.stderr))
        return None
