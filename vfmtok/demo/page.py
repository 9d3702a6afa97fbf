"""The demo's page: which control calls which function of the studio, and where its answer is shown."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from vfmtok.demo import studio as room
from vfmtok.demo.studio import Studio, Tokenized
from vfmtok.errors import VFMTokError
from vfmtok.evaluation.sampling_points import has_sampling_points
from vfmtok.pictures.sampling_points import default_tokens
from vfmtok.tokenizers.editing import REGIONS

CSS = """
.gradio-container {width: 100%; max-width: 1180px !important; margin: 0 auto !important}
.pixels img {image-rendering: pixelated}
.whole img {width: 100%; height: 100%; object-fit: contain}
.clickable img {cursor: crosshair}
"""
# All visitors share the models, and precision is a switch of the whole process.
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "models"}
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
THEME = gr.themes.Soft(primary_hue="blue", neutral_hue="slate", radius_size="md", font=_FONTS).set(
    block_title_background_fill="none",
    block_title_text_color="*body_text_color",
    block_title_padding="0",
    body_background_fill="*neutral_50",
)


def build(studio: Studio, examples: list[str], title: str = "VFMTok") -> gr.Blocks:
    """The page. ``examples``: image files to begin with, at least two."""
    with _blank(title) as page:
        _show(studio, examples, title, page)
    return page


def build_all(studios: Mapping[str, Studio], examples: list[str]) -> gr.Blocks:
    """``studios``: by the systems' names. Of one, its page; of several a page of links, and theirs at /system-1, ..."""
    if len(studios) == 1:
        ((name, studio),) = studios.items()
        return build(studio, examples, name)
    with _blank("VFMTok") as page:
        gr.Navbar(main_page_name="All systems")
        gr.Markdown(f"# VFMTok\nChoose a system:\n{_links(studios)}", elem_id="systems")
    for number, (name, studio) in enumerate(studios.items(), 1):
        with page.route(name, f"system-{number}", show_in_navbar=False):
            gr.Navbar(main_page_name="All systems")
            _show(studio, examples, name, page)
    return page


def _blank(title: str) -> gr.Blocks:
    return gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 24 * 3600))


def _links(studios: Mapping[str, Studio]) -> str:
    return "\n".join(f"- [{name}](system-{number}): {_facts(s)}" for number, (name, s) in enumerate(studios.items(), 1))


def _show(studio: Studio, examples: list[str], title: str, page: gr.Blocks) -> None:
    """Everything of a system."""
    gr.Markdown(f"# {title}\n{_facts(studio)}")
    if studio.generator is not None:
        with gr.Tab("Class to images", id="sample"):
            _sampling_tab(studio)
    with gr.Tab(f"Image to {studio.pieces}", id="tokenize"):
        _tokens_tab(studio, examples, page)
    if studio.on_grid is not None and hasattr(studio.generator, "any_order"):
        with gr.Tab("Complete an image", id="complete"):
            _completing_tab(studio, examples)
    if studio.grid is not None:
        with gr.Tab("Mix two images", id="mix"):
            _mixing_tab(studio, examples, page)


def _facts(studio: Studio) -> str:
    config = studio.tokenizer.config
    text = f"An image of {config.image_size} px becomes **{studio.tokenizer.code}**"
    text += f" on a grid of {studio.grid[0]} x {studio.grid[1]}. " if studio.grid is not None else ". "
    if studio.generator is not None:
        parameters = sum(parameter.numel() for parameter in studio.generator.parameters())
        text += f"The generator has {parameters / 1e6:,.1f} M parameters and {studio.generator.num_classes} classes."
    return text


def _told(function: Callable) -> Callable:
    """What the user can mend is shown on the page."""

    @functools.wraps(function)
    def call(*arguments, **options):
        try:
            return function(*arguments, **options)
        except VFMTokError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return call


# --------------------------------------------------------------------------------------
# Class -> images
# --------------------------------------------------------------------------------------


def _sampling_tab(studio: Studio) -> None:
    choices = [(name, label) for label, name in enumerate(studio.class_names())]
    first, *others = dataclasses.fields(studio.generator.sampling)  # cfg_scale comes first
    if getattr(studio.generator, "guided_by", None) is None:
        others = [field for field in others if field.name != "cfg_weaker"]
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            label = gr.Dropdown(choices, value=0, label="Class", elem_id="class")
            count = gr.Slider(1, 16, 8, step=1, label="Images")
            controls = [_control(first, studio, value=2.0)]
            seed = gr.Number(0, precision=0, minimum=0, label="Seed", elem_id="seed")
            with gr.Accordion("Sampling", open=False):
                controls += [_control(field, studio) for field in others]
            go = gr.Button("Sample", variant="primary", elem_id="go-sample")
        with gr.Column(scale=5, min_width=420):
            shown = gr.Gallery(
                show_label=False, columns=4, format="png", object_fit="contain", height="auto", elem_id="samples",
                buttons=["download_all"], elem_classes="pixels",
            )  # fmt: skip
            about = gr.Markdown("Choose a class and press **Sample**.", elem_id="about-samples")
    names = [field.name for field in (first, *others)]

    @_told
    def run(label, count, seed, *values):
        if label is None or seed is None:
            raise VFMTokError("choose a class and a seed")
        return room.sample(studio, label, count, seed=seed, **dict(zip(names, values, strict=True)))

    gr.on([go.click, seed.submit], run, [label, count, seed, *controls], [shown, about], **ONE_AT_A_TIME)


def _control(field: dataclasses.Field, studio: Studio, value: Any = None) -> gr.components.Component:
    """What sets a field of the generator's ``sampling``, by its type and metadata (generators/contract.py)."""
    about, kind = field.metadata, typing.get_type_hints(studio.generator.sampling)[field.name]
    kind = next((part for part in typing.get_args(kind) if part in (int, float)), kind)  # int | None -> int
    value = field.default if value is None else value
    label = about.get("label", field.name.replace("_", " ").capitalize())
    said = {"label": label, "info": about.get("help")}
    if field.name == "cfg_weaker":  # the one that is there, or none
        weaker = studio.generator.guided_by
        return gr.Dropdown([("none", None), (weaker, weaker)], value=weaker, **said)
    if typing.get_origin(kind) is typing.Literal:
        return gr.Dropdown(list(typing.get_args(kind)), value=value, **said)
    if kind is bool:
        return gr.Checkbox(value, **said)
    if "range" in about:
        lowest, highest, step = about["range"]
        return gr.Slider(lowest, highest, value, step=step, **said)
    return gr.Number(value, precision=0 if kind is int else None, **said)


# --------------------------------------------------------------------------------------
# Image -> tokens -> image
# --------------------------------------------------------------------------------------


def _tokens_tab(studio: Studio, examples: list[str], page: gr.Blocks) -> None:
    on_grid = studio.on_grid is not None
    has_points = has_sampling_points(studio.tokenizer) and on_grid and studio.on_grid[1].start == 0
    start = ", ".join(map(str, default_tokens(studio.on_grid[0].count, studio.grid))) if on_grid else ""
    with gr.Row():
        image = _upload("Image", examples, examples[0], "upload", 320)
        decoded = _picture("Reconstruction", "reconstruction", ["pixels", "whole"], 320)
        ids = "Ids of its tokens" + (": click cells to choose up to 8" if has_points else "")
        grid = _picture(ids, "ids", ["clickable"], 320, visible=on_grid)
    about = gr.Markdown(elem_id="about-tokens")
    with gr.Column(visible=has_points):
        with gr.Row(equal_height=True):
            tokens = gr.Textbox(start, label="Chosen tokens, counted from 0, row by row", elem_id="tokens", scale=4)
            show = gr.Button("Show where they look", variant="primary", elem_id="go-points", scale=1)
        points = gr.Image(show_label=False, format="png", interactive=False, elem_id="points", buttons=["download"])
    held = gr.State()

    def drawn(found: Tokenized | None, chosen: list[int]):
        """(grid, points) of the chosen tokens."""
        if found is None:
            return None, None
        points = room.draw_points(studio, found, chosen) if has_points and chosen else None
        return room.draw_ids(studio, found, chosen if has_points else ()), points

    def parsed(text: str) -> list[int]:
        return room.parse_tokens(studio, text) if has_points else []

    @_told
    def encode(path, text):
        if path is None:
            return None, None, None, None, "Give an image: drop it, paste it, or take an example."
        found = room.tokenize(studio, path)
        side = len(found.crop)
        line = f"{studio.tokenizer.code}. "
        if found.code.ndim == 1:
            line = f"{len(found.code)} ids, {len(set(found.code.tolist()))} of them different. "
        line += f"PSNR {found.psnr:.2f} dB at {side} px, of the centre crop."
        return found, room.enlarged(found.decoded), *drawn(found, parsed(text)), line

    @_told
    def choose(found, text):
        return drawn(found, parsed(text))

    @_told
    def click(found, text, place: gr.SelectData):
        chosen = room.toggle(
            room.parse_tokens(studio, text) if text.strip() else [], room.token_at(studio, *place.index)
        )
        return ", ".join(map(str, chosen)), *drawn(found, chosen)

    outputs = [held, decoded, grid, points, about]
    gr.on([image.change, page.load], encode, [image, tokens], outputs, **ONE_AT_A_TIME)
    gr.on([tokens.submit, show.click], choose, [held, tokens], [grid, points], **ONE_AT_A_TIME)
    if has_points:
        grid.select(click, [held, tokens], [tokens, grid, points], **ONE_AT_A_TIME)


# --------------------------------------------------------------------------------------
# A part of an image, completed
# --------------------------------------------------------------------------------------


def _completing_tab(studio: Studio, examples: list[str]) -> None:
    choices = [("no class", None), *((name, label) for label, name in enumerate(studio.class_names()))]
    parts = list(REGIONS) if studio.generator.any_order else ["bottom"]
    with gr.Row():
        image = _upload("Image", examples, examples[0], "to-complete", 320)
        with gr.Column(min_width=260):
            label = gr.Dropdown(choices, value=None, label="Class", elem_id="class-of")
            part = gr.Radio(parts, value="bottom", label="Redrawn part", elem_id="part")
            share = gr.Slider(0.1, 1, 0.5, step=0.05, label="How much of it", elem_id="how-much")
            scale = _control(dataclasses.fields(studio.generator.sampling)[0], studio, value=1.0)
            seed = gr.Number(0, precision=0, minimum=0, label="Seed")
            go = gr.Button("Complete", variant="primary", elem_id="go-complete")
    shown = gr.Gallery(
        show_label=False, columns=5, format="png", object_fit="contain", height="auto", elem_id="completions",
        buttons=["download_all"], elem_classes="pixels",
    )  # fmt: skip
    about = gr.Markdown("What is redrawn is grey when the image is encoded.", elem_id="about-completions")

    @_told
    def run(path, label, part, share, scale, seed):
        if path is None or seed is None:
            raise VFMTokError("give an image and a seed")
        found = room.tokenize(studio, path)
        return room.complete(studio, found, label, part, share, 4, seed=seed, cfg_scale=scale)

    gr.on([go.click, seed.submit], run, [image, label, part, share, scale, seed], [shown, about], **ONE_AT_A_TIME)


# --------------------------------------------------------------------------------------
# Tokens of two images
# --------------------------------------------------------------------------------------


def _mixing_tab(studio: Studio, examples: list[str], page: gr.Blocks) -> None:
    with gr.Row():
        first = _upload("First image", examples, examples[0], "first", 240)
        second = _upload("Second image", examples[::-1], examples[-1], "second", 240)
        with gr.Column(min_width=260):
            patterns, start = list(room.PATTERNS), next(iter(room.PATTERNS))
            name = gr.Radio(
                patterns, value=start, label=f"Where the second image's {studio.pieces} go", elem_id="pattern"
            )
            share = gr.Slider(0, 1, 0.5, step=0.05, label="Their share", elem_id="share")
            style = gr.Radio(
                ["first", "second"], value="first", label="Whose holistic tokens (style)", elem_id="style",
                visible=studio.has_holistic,
            )  # fmt: skip
    with gr.Row():
        choice = _picture("Whose cell is taken (blue: second). Click cells to change it", "choice", ["clickable"], 380)
        mixed = _picture(f"Decoded from these {studio.pieces}", "mixed", ["pixels", "whole"], 380)
    tokens = [gr.State(), gr.State()]
    mask = gr.State(room.pattern(start, studio.grid, 0.5))

    def drawn(one: Tokenized | None, other: Tokenized | None, mask: np.ndarray, style: str):
        if one is None or other is None:
            return None, None
        return room.draw_choice(studio, one, other, mask), room.enlarged(room.mix(studio, one, other, mask, style))

    @_told
    def encode(path, other_path, mask, style):
        found = [room.tokenize(studio, Path(p)) if p is not None else None for p in (path, other_path)]
        return *found, *drawn(*found, mask, style)

    @_told
    def lay(one, other, name, share, style):
        mask = room.pattern(name, studio.grid, share)
        return mask, *drawn(one, other, mask, style)

    @_told
    def restyle(one, other, mask, style):
        return drawn(one, other, mask, style)

    @_told
    def click(one, other, mask, style, place: gr.SelectData):
        row, column = divmod(room.token_at(studio, *place.index), studio.grid[1])
        mask = mask.copy()
        mask[row, column] = not mask[row, column]
        return mask, *drawn(one, other, mask, style)

    gr.on(
        [first.change, second.change, page.load],
        encode,
        [first, second, mask, style],
        [*tokens, choice, mixed],
        **ONE_AT_A_TIME,
    )
    gr.on([name.change, share.release], lay, [*tokens, name, share, style], [mask, choice, mixed], **ONE_AT_A_TIME)
    style.change(restyle, [*tokens, mask, style], [choice, mixed], **ONE_AT_A_TIME)
    choice.select(click, [*tokens, mask, style], [mask, choice, mixed], **ONE_AT_A_TIME)


def _upload(caption: str, examples: list[str], value: str, name: str, height: int) -> gr.Image:
    """With examples below. It hands on the file itself, unchanged: the crop is ours to make."""
    with gr.Column(min_width=260):
        gr.Markdown(f"**{caption}**", elem_classes="caption")
        image = gr.Image(
            value, show_label=False, type="filepath", image_mode=None, sources=["upload", "clipboard"], height=height,
            elem_id=name, elem_classes="whole", buttons=[],
        )  # fmt: skip
        gr.Examples(examples, image, label="Examples")
    return image


def _picture(caption: str, name: str, looks: list[str], height: int, visible: bool = True) -> gr.Image:
    with gr.Column(min_width=260, visible=visible):
        gr.Markdown(f"**{caption}**", elem_classes="caption")
        return gr.Image(
            show_label=False, format="png", interactive=False, height=height, elem_id=name, elem_classes=looks,
            buttons=[],
        )  # fmt: skip
