"""A sweep over guidance scales: every result kept, and FID and IS drawn against the scale."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vfmtok import distributed
from vfmtok.errors import ConfigError
from vfmtok.evaluation.jobs import differences
from vfmtok.evaluation.results import as_lines
from vfmtok.evaluation.samples import Samples
from vfmtok.files import read_json, replace_file, write_json
from vfmtok.generators.contract import at_scale

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
        model: what the folders' names begin with, "/" replaced: "LightningDiT-XL/1" is one folder, not two.

    Returns:
        scale -> results.
    """
    found: dict[float, dict[str, Any]] = {}
    begin = model.replace("/", "-")
    # All settings are looked at before the first one takes hours.
    settings = [replace(samples, sampling=at_scale(samples.sampling, scale)) for scale in scales]
    for setting in settings:
        place = folder / f"{begin}-{setting.name}"
        results = found[setting.sampling.cfg_scale] = evaluate(setting, place)
        distributed.print_main("\n".join(as_lines(f"{model}: {place}", results)))
    if len(found) > 1:
        with distributed.together():
            if world.is_main:
                _, _, *otherwise = at_scale(samples.sampling, 2.0).guidance.split()  # without "CFG 2"
                stem = "-".join([begin, "sweep", *otherwise, samples.name_at_any_scale])
                _keep(found, folder / stem, model, samples.unsaid)
    return found


def _keep(found: dict[float, dict[str, Any]], stem: Path, model: str, unsaid: dict[str, Any]) -> None:
    """All results in one JSON file, what earlier sweeps of the same models found included, and the picture.

    Those of other models, or against another reference, do not belong on the same curve; they keep their own folders.
    """
    path = stem.with_name(stem.name + ".json")
    job = _without_guidance(next(iter(found.values()))["job"])
    earlier = read_json(path) or {}
    if earlier:
        theirs = earlier.get("job", {})
        different = differences(job, theirs, unsaid) or sorted(theirs.keys() - job.keys())
        if different:
            print(f"sweep: {path} was of another {different[0]} and is replaced")
            earlier = {}
    scales = {f"{scale:g}": {"numbers": r["numbers"], "warnings": r["warnings"]} for scale, r in found.items()}
    scales = dict(sorted((earlier.get("scales", {}) | scales).items(), key=lambda item: float(item[0])))
    write_json(path, {"job": job, "scales": scales})
    points = {float(scale): _short_names(results["numbers"]) for scale, results in scales.items()}
    if any(points.values()):
        draw_sweep(points, stem.with_name(stem.name + ".png"), model)
        print(f"sweep: {path} and its picture {stem.name}.png")
    else:
        print(f"sweep: {path}")


def _without_guidance(job: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in job.items() if not key.startswith("cfg_")}


def _short_names(numbers: dict[str, Any]) -> dict[str, float]:
    """ "gFID (CFG 1.5)" -> "gFID", of what has a value."""
    return {name.partition(" (")[0]: entry["value"] for name, entry in numbers.items() if entry["value"] is not None}


def draw_sweep(points: dict[float, dict[str, float]], path: Path, model: str) -> None:
    """gFID, sFID, IS, precision and recall against the scale, as far as they were measured.

    Args:
        points: scale -> name -> value.

    Raises:
        ConfigError: matplotlib is not installed. DataError: the disk refuses.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("the sweep's picture needs matplotlib: pip install 'vfmtok[eval]'") from None
    panels = [
        pair for pair in (("gFID",), ("sFID",), ("IS",), ("Pr", "Rc")) if any(pair[0] in p for p in points.values())
    ]
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
            if name in ("gFID", "sFID", "IS"):
                best = (max if name == "IS" else min)(curve, key=lambda point: point[1])
                title = f"{name} (best {best[1]:.2f} at {best[0]:g})"
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("guidance scale (1: no CFG)")
        axis.margins(x=0.08, y=0.15)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    replace_file(path, lambda file: figure.savefig(file, dpi=110, format="png"))
