"""A sweep over guidance scales: every result kept, and FID and IS drawn against the scale."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vfmtok import distributed
from vfmtok.errors import ConfigError
from vfmtok.evaluation import parts
from vfmtok.evaluation.report import as_lines
from vfmtok.evaluation.samples import Samples

Evaluate = Callable[[Samples, Path], dict[str, Any]]


def parse_scales(text: str) -> list[float]:
    """ "1.0,1.25,1.5" -> [1.0, 1.25, 1.5]. Raises ConfigError."""
    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--cfg-scale takes a number or several with commas between, got '{text}'") from None
    if len(set(scales)) < len(scales):
        raise ConfigError(f"--cfg-scale names a scale twice: '{text}'")
    return scales


def run_sweep(
    evaluate: Evaluate, samples: Samples, scales: Iterable[float], folder: Path, model: str, world: distributed.World
) -> dict[float, dict[str, Any]]:
    """Evaluate every scale in a folder of its own and print it; with several, leave a sweep-*.json and picture too.

    Args:
        evaluate: (samples, folder) -> results; every process must call it.
        model: what the folders' names begin with.

    Returns:
        scale -> results.
    """
    found: dict[float, dict[str, Any]] = {}
    for scale in scales:
        setting = replace(samples, cfg_scale=scale)
        place = folder / f"{model}-{setting.name}"
        found[scale] = evaluate(setting, place)
        distributed.print_main("\n".join(as_lines(f"{model}: {place}", found[scale])))
    if len(found) > 1:
        with distributed.together():
            if world.is_main:
                scale_free = replace(samples, cfg_scale=1.0, cfg_interval=-1).name.removeprefix("no-cfg-")
                interval = f"-interval-{samples.cfg_interval}" if samples.cfg_interval >= 0 else ""
                _keep(found, folder / f"{model}-sweep{interval}-{scale_free}", model)
    return found


def _keep(found: dict[float, dict[str, Any]], stem: Path, model: str) -> None:
    """All results in one JSON file, what earlier sweeps of these samples found included, and the picture."""
    path = stem.with_name(stem.name + ".json")
    earlier = parts.read_json(path) or {}
    kept = earlier | {f"{scale:g}": {"numbers": r["numbers"], "warnings": r["warnings"]} for scale, r in found.items()}
    kept = dict(sorted(kept.items(), key=lambda item: float(item[0])))
    parts.write_json(path, kept)
    points = {float(scale): _short_names(results["numbers"]) for scale, results in kept.items()}
    if any(points.values()):
        draw_sweep(points, stem.with_name(stem.name + ".png"), model)
        print(f"sweep: {path} and its picture {stem.name}.png")
    else:
        print(f"sweep: {path}")


def _short_names(numbers: dict[str, Any]) -> dict[str, float]:
    """ "gFID (CFG 1.5)" -> "gFID"."""
    return {name.partition(" (")[0]: entry["value"] for name, entry in numbers.items()}


def draw_sweep(points: dict[float, dict[str, float]], path: Path, model: str) -> None:
    """FID and IS against the scale, IS against FID, precision and recall where they are.

    Args:
        points: scale -> name -> value.

    Raises:
        ConfigError: matplotlib is not installed. DataError: the disk refuses.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("the sweep's picture needs matplotlib: pip install 'vfmtok[eval]'") from None
    panels = [pair for pair in (("gFID", "sFID"), ("IS",), ("Pr", "Rc")) if any(pair[0] in p for p in points.values())]
    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    figure.suptitle(model, fontsize=11)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, names in zip(axes, panels, strict=True):
        title = ", ".join(names)
        for number, name in enumerate(names):
            curve = [(scale, values[name]) for scale, values in sorted(points.items()) if name in values]
            if not curve:
                continue
            axis.plot(*zip(*curve, strict=True), "o-", color=f"C{number}", label=name, linewidth=1.4, markersize=4)
            if number == 0 and name in ("gFID", "IS"):
                best = (min if name == "gFID" else max)(curve, key=lambda point: point[1])
                title = f"{', '.join(names)} (best {name} {best[1]:.2f} at {best[0]:g})"
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("guidance scale (1: no CFG)")
        axis.margins(x=0.08, y=0.15)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    parts.replace_file(path, lambda file: figure.savefig(file, dpi=110, format="png"))
