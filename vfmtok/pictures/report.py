"""What scripts/quickstart.sh left in a folder, as one self-contained HTML page.

Every section is made from the files of one stage; a stage that has not run yet has a line that says so. Numbers stand
beside their protocols, as the stages wrote them.
"""

import html
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from vfmtok.data.dataset_folder import open_splits
from vfmtok.data.latent_cache import LatentCache, open_cache, shown
from vfmtok.errors import DataError
from vfmtok.metrics.usage import usage_of_counts
from vfmtok.pictures import web_page
from vfmtok.pictures.curves import Log, draw_curves, read_log
from vfmtok.pictures.latent_channels import LATENTS_SHEET

TIMINGS = "timings.tsv"  # a line per finished stage: name, seconds, command


def build_page(folder: Path) -> str:
    """The page of a folder. Raises VFMTokError for files that are there and damaged."""
    sections = (
        ("In numbers", _headline),
        ("The images", _data),
        ("Reconstructions", _reconstructions),
        ("Where the region tokens look", _sampling_points),
        ("The codebook", _codebook),
        ("The latents", _latents),
        ("Generated images", _samples),
        ("Do they look like their classes?", _agreement),
        ("Training the tokenizer", _tokenizer_curves),
        ("Training the generator", _generator_curves),
        ("What was run", _timings),
    )
    body = "\n".join(filter(None, (_section(title, make, folder) for title, make in sections)))
    return web_page.page("An image tokenizer and a generator, from scratch", _INTRODUCTION + body, "vfmtok quickstart")


def _section(title: str, make: Callable[[Path], str | None], folder: Path) -> str | None:
    """None of what this system has not."""
    try:
        content = make(folder)
    except FileNotFoundError as missing:
        content = f"<p class='missing'>Not there yet: {html.escape(str(missing.filename or missing))}</p>"
    return None if content is None else web_page.section(title, content)


# --------------------------------------------------------------------------------------
# Sections: each reads the files of a stage, and raises FileNotFoundError where there are none; None: nothing to say
# --------------------------------------------------------------------------------------


def _headline(folder: Path) -> str:
    """The figures that people look for first; whatever is there."""
    tiles: list[tuple[str, str, str]] = []
    for path, wanted in (
        ("reconstruction/results.json", ("PSNR", "usage")),
        ("agreement/results.json", ("agreement",)),
    ):
        if (folder / path).is_file():
            for name, entry in _json(folder / path)["numbers"].items():
                if any(word in name for word in wanted):
                    said = entry["protocol"].partition(";")[0]  # the tables below say all of it
                    tiles.append((_value(entry, ".4g"), name, said))
    if (folder / "generator/log.jsonl").is_file():
        log = read_log(folder / "generator")
        if "validation/loss" in log:
            what, against = "loss of held-out latents", _terms(log)
            if "validation/uniform" in log:
                what, against = "nats per held-out token", f"uniform guessing: {log['validation/uniform'][1][-1]:.2f}"
            tiles.append((f"{log['validation/loss'][1][-1]:.2f}", what, against))
    if (folder / TIMINGS).is_file():
        total = sum(seconds for _, seconds, _ in _stages(folder))
        finished = "stages that did not finish are not counted; the others are at the end of this page"
        tiles.append((f"{total / 60:.1f} min", "for the stages that finished", finished))
    if not tiles:
        raise FileNotFoundError("results of any stage")
    cells = "".join(
        f"<div class='tile'><b>{html.escape(value)}</b><span>{html.escape(name)}</span>"
        f"<small>{html.escape(note)}</small></div>"
        for value, name, note in tiles
    )
    return f"<div class='tiles'>{cells}</div>"


def _terms(log: Log) -> str:
    """What the held-out loss of latents is the sum of."""
    names = {"mse": "squared error of the velocity", "cosine": "its direction", "token": "class token"}
    terms = {name.partition("/")[2]: values[-1] for name, (_, values) in log.items() if name.startswith("validation/")}
    shown = [f"{names.get(name, name)} {terms[name]:.2f}" for name in (*names, "align") if name in terms]
    return " + ".join(shown) or f"mean {names['mse']}"


def _data(folder: Path) -> str:
    splits = open_splits(_needed(folder / "data"))
    counts = [records.metadata.get("class_counts", {}) for records in splits.values()]  # by `vfmtok prepare`
    rows = [
        [name, *(f"{found.get(str(label), 0):,}" for found in counts)]
        for label, name in enumerate(next(iter(splits.values())).classes or [])
    ]
    rows.append(["all", *(f"{len(records):,}" for records in splits.values())])
    return web_page.paragraph("Labelled images, encoded files kept byte for byte.") + web_page.table(
        ["class", *splits], rows
    )


def _reconstructions(folder: Path) -> str:
    results = _json(folder / "reconstruction/results.json")
    text = (
        "Held-out images the tokenizer never saw: input, reconstruction from the code alone, and the error. The worst, "
        "the middle and the best by PSNR."
    )
    return (
        web_page.paragraph(text) + web_page.picture(folder / "reconstruction/reconstructions.png") + _numbers(results)
    )


def _sampling_points(folder: Path) -> str | None:
    picture, measured = (folder / "reconstruction" / name for name in ("sampling_points.png", "results.json"))
    if measured.is_file() and not picture.is_file():
        return None
    text = (
        "Each token reads the frozen encoder's maps at a few learned points. Four tokens of the grid in the first, a "
        "middle and the last layer: the cross is the token's own place, a dot's area the weight of a point."
    )
    return web_page.paragraph(text) + web_page.picture(_needed(picture))


def _latents(folder: Path) -> str | None:
    place = folder / "codes/train"
    if not place.is_dir() or not isinstance(cache := open_cache(place), LatentCache):
        return None
    text = f"No codebook: {cache.code}. Over all training images and views: {shown(cache.statistics)}."
    sheets = [("Training images, and what their latents decode to:", web_page.picture(place / "contact_sheet.png"))]
    if (place / LATENTS_SHEET).is_file():  # older caches have none
        sheets.append(("Some of them, and their latents by channel:", web_page.picture(place / LATENTS_SHEET)))
    return web_page.paragraph(text) + "".join(web_page.paragraph(said) + picture for said, picture in sheets)


def _codebook(folder: Path) -> str | None:
    cache = open_cache(_needed(folder / "codes/train"))
    sheet = web_page.picture(folder / "codes/train/contact_sheet.png")
    if isinstance(cache, LatentCache):
        return None
    figure, axis = web_page.figure("share of tokens", "code, the most frequent first")
    text = ""
    for segment, counts in zip(cache.code.segments, cache.code_counts(), strict=True):
        usage, perplexity = usage_of_counts(counts)
        which = f", of the {segment.count} tokens" if len(cache.code.segments) > 1 else ""
        text += (
            f"{usage:.1%} of {segment.size:,} codes occur in the ids of the training images and their views "
            f"({int(counts.sum()):,} tokens); perplexity {perplexity:.0f}{which}. "
        )
        axis.plot((counts / counts.sum()).sort(descending=True).values.numpy(), label=f"the codes{which}")
        axis.axhline(1 / segment.size, color="0.6", linestyle="--", label="if all were equally frequent")
    axis.set_yscale("log")
    axis.legend(fontsize=8)
    chart = web_page.embedded(web_page.png(figure), "codes by frequency", "half")
    return (
        web_page.paragraph(text) + chart + web_page.paragraph("Training images, and what their ids decode to:") + sheet
    )


def _samples(folder: Path) -> str:
    pictures = sorted((folder / "samples").glob("*.png"))
    if not pictures:
        raise FileNotFoundError(folder / "samples/*.png")
    text = (
        "A row for every class, the same seeds in every picture. Guidance 1 is without guidance. Steps, where there "
        "are any, lead from noise to data."
    )
    return web_page.paragraph(text) + "".join(f"<h3>{_title(path)}</h3>{web_page.picture(path)}" for path in pictures)


def _agreement(folder: Path) -> str:
    return _numbers(_json(folder / "agreement/results.json"))


def _tokenizer_curves(folder: Path) -> str:
    """Of its stages, where there are several: the last one has no number."""
    stages = [*sorted(folder.glob("tokenizer_stage*")), folder / "tokenizer"]
    return "".join(_curves(stage) + _recipe(stage) for stage in stages)


def _generator_curves(folder: Path) -> str:
    log = read_log(_needed(folder / "generator/log.jsonl"))
    text = ""
    if "validation/unigram" in log:
        uniform, unigram = log["validation/uniform"][1][-1], log["validation/unigram"][1][-1]
        text = f"Guessing uniformly costs {uniform:.2f} nats a token, knowing how frequent each code is {unigram:.2f}."
    return web_page.paragraph(text) + _curves(folder / "generator") + _recipe(folder / "generator")


def _timings(folder: Path) -> str:
    rows = [
        [name, f"{seconds:,.0f}&nbsp;s", f"<code>{html.escape(command)}</code>"]
        for name, seconds, command in _stages(folder)
    ]
    table = web_page.table(["stage", "time", "command"], rows, escaped=True)
    return web_page.paragraph(_forecast(folder)) + table


def _forecast(folder: Path) -> str:
    """What was expected before the trainings, and what --minutes has cost; "" where nothing was."""
    text = ""
    for file in folder.glob("pace*.json"):
        found = _json(file)
        text = f"Before the trainings {found['seconds'] / 60:.0f} minutes were expected for them and what follows."
        if found["share"] < 1:
            counts = " and ".join(f"{training['steps']:,} of the {training['kind']}" for training in found["trainings"])
            text += f" To fit, trainings made {found['share']:.0%} of their recipes' steps (in full: {counts}): "
            text += "images and numbers above are not what the whole recipes give."
    return text


def _stages(folder: Path) -> list[tuple[str, float, str]]:
    """(name, seconds in all runs of it, command), in the order of their first run."""
    found: dict[tuple[str, str], float] = {}
    for line in (folder / TIMINGS).read_text(encoding="utf-8").splitlines():
        name, seconds, command = line.split("\t", 2)
        found[name, command] = found.get((name, command), 0) + float(seconds)
    return [(name, seconds, command) for (name, command), seconds in found.items()]


# --------------------------------------------------------------------------------------
# Pieces of HTML
# --------------------------------------------------------------------------------------


def _needed(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(path)
    return path


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): delete it and run its stage again") from None


def _numbers(results: dict[str, Any]) -> str:
    rows = [
        [name, _value(entry, f".{entry['digits']}f"), entry["protocol"]] for name, entry in results["numbers"].items()
    ]
    notes = "".join(f"<p class='note'>{html.escape(text)}</p>" for text in (*results["warnings"], *results["notes"]))
    return web_page.table(["measure", "value", "protocol"], rows) + notes


def _value(entry: dict[str, Any], form: str) -> str:
    return "none" if entry["value"] is None else format(entry["value"], form)


def _curves(run: Path) -> str:
    _needed(run / "log.jsonl")
    picture = io.BytesIO()
    draw_curves({run.name: read_log(run)}, picture)
    return web_page.embedded(picture.getvalue(), f"curves of {run.name}")


def _recipe(run: Path) -> str:
    try:
        text = (run / "recipe.yaml").read_text(encoding="utf-8")
        yaml.safe_load(text)
    except (OSError, yaml.YAMLError):
        return ""
    return f"<details><summary>all settings</summary><pre>{html.escape(text)}</pre></details>"


def _title(path: Path) -> str:
    """Of a picture: steps-05.png, which is before steps-10.png, shows 5 steps."""
    word, _, count = path.stem.partition("-")
    return html.escape(f"{word} {count.lstrip('0')}" if count.isdecimal() else path.stem.replace("-", " "))


_INTRODUCTION = """<p>A tokenizer learns to make a short code of every image, ids or latents; a generator learns the
codes of every class, and what it writes is decoded into new images. Small models and minutes of training: the same
code, with other settings, is the full-size system.</p>
"""
