"""The page that a study ends in: one HTML file that needs nothing else."""

import html
import io

import numpy as np
from PIL import Image

from vfmtok.code import Code, Ids
from vfmtok.files import read_json
from vfmtok.pictures import web_page
from vfmtok.pictures.curves import draw_compared, read_log
from vfmtok.pictures.rows import draw_columns
from vfmtok.study.config import ColumnConfig
from vfmtok.study.images import GUIDANCE, read_images
from vfmtok.study.numbers import Cell, Table, ours_in_words
from vfmtok.study.speed import as_time
from vfmtok.study.steps import Plan, Step

COLUMNS = {  # of the paper's tables -> how the page spells them out, where a name does not say it
    "rFID": "FID of reconstructions",
    "rIS": "Inception score of reconstructions",
    "gFID": "FID of generated images",
    "gIS": "Inception score of generated images",
    "L.P.": "top-1 of a linear probe on the tokens, %",
}
TOKENIZER_PANELS = ("pixel loss (training)", "held-out PSNR", "codes in use")
GENERATOR_PANELS = (
    "token loss (training)", "held-out token loss", "velocity loss (training)", "held-out loss of latents",
)  # fmt: skip
WIDEST = 1800  # px of a picture
Pictures = dict[str, tuple[str, Image.Image]]  # a file's name -> a title in words, the picture


def build_page(plan: Plan, table: Table, pictures: Pictures) -> str:
    """Of what there is so far, with ``draw_pictures``. Raises VFMTokError for files that are there and damaged."""
    study = plan.study
    body = web_page.paragraph(study.about)
    body += web_page.section("The table", _table(plan, table))
    body += web_page.section("The same images through every row", _images(pictures))
    body += web_page.section("Tokenizers in training", _curves(plan, "tokenizer", TOKENIZER_PANELS))
    if study.generator is not None:
        body += web_page.section("Generators in training", _curves(plan, "generator", GENERATOR_PANELS))
    body += web_page.section("The rows", _rows(plan))
    body += web_page.section("How it was measured", _protocols(table))
    return web_page.page(study.title or "A study", body, study.title or "vfmtok study")


def _table(plan: Plan, table: Table) -> str:
    study, seeds = plan.study, len(plan.study.seeds)
    head = ["row", "tokens", *(column.name for column in study.columns)]
    rows = []
    for row in plan.rows:
        cells = table.cells[row.name]
        values = [_cell(cells[column.name], column) for column in study.columns]
        rows.append([html.escape(row.name), _tokens(row.code), *values])
    compared = "the row above it" if study.compare == "previous" else "the first row"
    text = (
        f"Ours on top: the mean over {seeds} seeds and their standard deviation; in grey the paper's number. "
        f"A row is compared with {compared}: ▲ better, ▼ worse, ≈ a difference within seed noise, which could be "
        "chance: less than what 19 of 20 differences between equal rows are below, by the deviation over the seeds, "
        "pooled over all rows."
    )
    if seeds == 1:
        text = (
            "Ours on top, one seed; in grey the paper's number. With one seed nothing is known of the noise, "
            "so no difference here is called better or worse."
        )
    noise = [
        f"{name} {value:.{column.digits + 1}f}"
        for column in study.columns
        for name, value in [(column.name, table.noise[column.name])]
        if value is not None
    ]
    if noise:
        text += f" Standard deviation over seeds: {', '.join(noise)}."
    columns = [f"{c.name}: {COLUMNS[c.name]}" for c in study.columns if c.name in COLUMNS]
    legend = web_page.paragraph("; ".join(columns) + ".") if columns else ""
    missing = sum(not step.done for step in plan.steps)
    left = f"<p class='missing'>{missing} of {len(plan.steps)} steps are not done yet.</p>" if missing else ""
    return web_page.paragraph(text) + left + web_page.table(head, rows, escaped=True, wide=True) + legend


def _tokens(code: Code) -> str:
    """How many an image has; of latents their shape."""
    return f"{code.num_tokens:,}" if isinstance(code, Ids) else " x ".join(map(str, code.shape))


def _cell(cell: Cell, column: ColumnConfig) -> str:
    theirs = "" if cell.published is None else f"<br><span class='note'>{cell.published:g}</span>"
    return ours_in_words(cell, column) + theirs


def _images(pictures: Pictures) -> str:
    if not pictures:
        return "<p class='missing'>Not there yet: images of any row.</p>"
    return "".join(web_page.paragraph(f"{title}:") + _picture(sheet.copy()) for title, sheet in pictures.values())


def draw_pictures(plan: Plan) -> Pictures:
    """Of the first seed that has any, what there is of "reconstructions" and "samples", each with a title in words.
    Rows of one tokenizer share its column."""
    for seed in plan.study.seeds:
        found = {row.name: plan.by_row[row.name, seed].get("images") for row in plan.rows}
        images = {name: read_images(step) for name, step in found.items() if step is not None and step.done}
        if images:
            break
    else:
        return {}
    first = next(iter(images.values()))
    side = first["decoded"].shape[1]
    columns = {"original": first["originals"]}
    for name, arrays in images.items():
        shown = any(np.array_equal(arrays["decoded"], known) for known in columns.values())
        if arrays["decoded"].shape[1] == side and not shown:
            columns[name] = arrays["decoded"]
    title = f"Held-out images and what they become (seed {seed}); rows of one tokenizer share the column of the first"
    drawn = {"reconstructions": (title, draw_columns(columns, "held out"))}
    samples = {name: arrays["samples"] for name, arrays in images.items() if "samples" in arrays}
    samples = {name: pixels for name, pixels in samples.items() if pixels.shape[1] == side}
    if samples:
        title = f"Generated at guidance {GUIDANCE:g}: two images of each class, the same random numbers in every row"
        drawn["samples"] = (f"{title} (seed {seed})", draw_columns(samples, f"guidance {GUIDANCE:g}"))
    return drawn


def _picture(sheet: Image.Image) -> str:
    sheet.thumbnail((WIDEST, 10 * WIDEST))
    content = io.BytesIO()
    sheet.quantize(256, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)  # a page is to be kept
    return web_page.embedded(content.getvalue(), "images of all rows")


def _curves(plan: Plan, kind: str, panels: tuple[str, ...]) -> str:
    logs = {row.name: [read_log(step.out) for step in _logged(plan, row.name, kind)] for row in plan.rows}
    png = draw_compared({name: runs for name, runs in logs.items() if runs}, panels)
    if not png:
        return "<p class='missing'>Not there yet: any log.</p>"
    return web_page.paragraph("A colour per row, a line per seed.") + web_page.embedded(png, f"curves of the {kind}s")


def _logged(plan: Plan, row: str, kind: str) -> list[Step]:
    steps = {plan.by_row[row, seed][kind].key: plan.by_row[row, seed][kind] for seed in _seeds_with(plan, row, kind)}
    return [step for step in steps.values() if (step.out / "log.jsonl").is_file()]


def _seeds_with(plan: Plan, row: str, kind: str) -> list[int]:
    return [seed for seed in plan.study.seeds if kind in plan.by_row[row, seed]]


def _rows(plan: Plan) -> str:
    rows = []
    for row in plan.rows:
        changes = [*row.config.tokenizer_set, *row.config.generator_set]
        recipe = row.config.weights or row.config.tokenizer or plan.study.tokenizer
        spent = [_seconds(step) for step in plan.steps if _serves(step, row.name)]
        about = html.escape(row.config.about)
        said = "<br>".join(f"<code>{html.escape(text)}</code>" for text in (recipe, *changes))
        rows.append([html.escape(row.name), about, said, as_time(sum(spent)) if any(spent) else "-"])
    text = "What a row is, its recipe and changes of it, and the time of its steps (those it shares counted in each)."
    return (
        _asked(plan)
        + web_page.paragraph(text)
        + web_page.table(["row", "", "recipe and changes", "time"], rows, escaped=True)
    )


def _asked(plan: Plan) -> str:
    """The command, and what all rows have in common."""
    study, changes = plan.study, plan.asked.changes
    said = {
        "The command": (plan.asked.command,),
        "Of the study": plan.asked.overrides,
        "All tokenizers": (*study.tokenizer_set, *changes.tokenizer),
        "All generators": (*study.generator_set, *changes.generator),
    }
    rows = [[name, " ".join(f"<code>{html.escape(text)}</code>" for text in said[name])] for name in said]
    return web_page.table(["", "settings"], [row for row in rows if any(said[row[0]])], escaped=True)


def _serves(step: Step, row: str) -> bool:
    return any(name == row for name, _ in step.needed_by)


def _seconds(step: Step) -> float:
    return (read_json(step.folder / "step.json") or {}).get("seconds", 0.0)


def _protocols(table: Table) -> str:
    """The first row's that has the number: what differs between rows, such as the vector of a probe, is said there."""
    rows = []
    for column in table.study.columns:
        protocols = {cells[column.name].protocol: name for name, cells in reversed(table.cells.items())}
        protocols.pop("", None)
        for protocol, name in reversed(protocols.items()):
            rows.append([column.name, name, protocol])
    return web_page.table(["column", "row", "protocol"], rows)
