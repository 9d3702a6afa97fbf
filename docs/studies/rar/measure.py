"""The numbers and the picture of this page: class agreement of runs, and in-painting with a free-form mask.

    python docs/studies/rar/measure.py agreement TOKENIZER DATA CODES HELD_OUT_CODES OUT.jsonl RUN...
    python docs/studies/rar/measure.py inpainting TOKENIZER CODES OUT.png RUN...

The first trains one linear probe on the frozen encoder and appends a line for every run: the share of images of every
class that the probe takes for that class, without guidance and at a constant scale of 2, and the nats per held-out
token in raster order. The second keeps the tokens of held-out images outside a mask of free form and lets every run (of
a generator that draws in any order) draw the others twice.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import vfmtok
from vfmtok.data.code_cache import CodeCache
from vfmtok.data.dataset_folder import open_split
from vfmtok.evaluation.agreement import ClassProbe, measure_real, open_probe_encoder, positional_unigram, read_batches

PER_CLASS, SCALES, SEED = 30, (1.0, 2.0), 0
MASK = """
........
..###...
.#####..
..####..
...####.
....###.
.##.....
.###....
"""  # 8 x 8 tokens; # is drawn again


def agreement(tokenizer_run: str, data: str, codes: str, held_out: str, out: str, *runs: str) -> None:
    torch.set_num_threads(1)
    tokenizer, train = vfmtok.from_pretrained(tokenizer_run, "tokenizer").eval(), CodeCache(codes)
    splits = {split: open_split(Path(data), split) for split in ("train", "val")}
    classes = len(train.classes)
    probe = ClassProbe(open_probe_encoder(tokenizer), tokenizer, splits["train"], classes)
    labels = torch.arange(classes).repeat_interleave(PER_CLASS)
    real = measure_real(probe, read_batches(splits["val"], probe.size))
    floor = probe.agreement_of_codes(positional_unigram(train, labels, SEED), labels)
    bounds = {"real": real.agreement, "real, decoded": real.decoded_agreement, "floor": floor}
    append(out, {"bounds": bounds, "images": real.count})
    for run in runs:
        generator = vfmtok.from_pretrained(run, "generator")
        found = {}
        for scale in SCALES:
            settings = {"cfg_scale": scale, "cfg_schedule": "constant", "seed": SEED}
            rows = torch.arange(len(labels)).split(90)
            drawn = [vfmtok.generate(generator, labels[part], sample_indices=part, **settings) for part in rows]
            found[f"cfg {scale:g}"] = probe.agreement_of_codes(torch.cat(drawn), labels)
        line = {"run": Path(run).name, "agreement": found, "images": len(labels)}
        append(out, {**line, **raster_loss(generator.eval(), CodeCache(held_out))})


@torch.no_grad()
def raster_loss(generator, held_out: CodeCache) -> dict[str, float]:
    """Nats per held-out token, row by row: with the class, and without."""
    code = torch.stack([held_out[row, 0][0] for row in range(len(held_out))])
    no_class = torch.full_like(held_out.labels, generator.null_class)
    found = {"nats": held_out.labels, "nats without the class": no_class}
    return {name: generator.held_out(code, labels)["loss"].mean().item() for name, labels in found.items()}


def append(out: str, line: dict) -> None:
    print(line, flush=True)
    with open(out, "a") as file:
        file.write(json.dumps(line) + "\n")


def inpainting(tokenizer_run: str, codes: str, out: str, *runs: str) -> None:
    """Columns: the decoded image, what is known of it, two samples of each run."""
    torch.set_num_threads(1)
    tokenizer, held_out = vfmtok.from_pretrained(tokenizer_run, "tokenizer").eval(), CodeCache(codes)
    rows = np.linspace(3, len(held_out) - 5, 7).astype(int)
    ids = torch.stack([held_out[row, 0][0] for row in rows])
    labels = held_out.labels[torch.from_numpy(rows)]
    hidden = torch.tensor([cell == "#" for cell in MASK.replace("\n", "")])  # (64,)
    columns, captions = [decoded(tokenizer, ids)], ["decoded", "known"]
    stencil = np.kron(hidden.view(8, 8).numpy(), np.ones((8, 8), bool))
    columns.append(np.where(stencil[None, :, :, None], 200, columns[0]).astype(np.uint8))
    for run in runs:
        generator = vfmtok.from_pretrained(run, "generator")
        for seed in range(2):
            settings = {"cfg_scale": 2.0, "cfg_schedule": "constant", "seed": seed}
            drawn = vfmtok.generate(generator, labels, known=(ids, ~hidden), **settings)
            assert torch.equal(drawn[:, ~hidden], ids[:, ~hidden])
            columns.append(decoded(tokenizer, drawn))
            captions.append(f"{Path(run).name} {seed}")
    side, gap = 128, 8
    picture = Image.new("RGB", (len(columns) * (side + gap) + gap, len(ids) * (side + gap) + gap + 16), "white")
    draw = ImageDraw.Draw(picture)
    for column, (images, caption) in enumerate(zip(columns, captions, strict=True)):
        x = gap + column * (side + gap)
        draw.text((x, 4), caption, "black")
        for row, image in enumerate(images):
            tile = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
            picture.paste(tile, (x, 16 + gap + row * (side + gap)))
    picture.quantize(128).save(out, optimize=True)


def decoded(tokenizer, ids: torch.Tensor) -> np.ndarray:
    return tokenizer.decode_to_uint8(ids, tokenizer.config.image_size).numpy()


if __name__ == "__main__":
    {"agreement": agreement, "inpainting": inpainting}[sys.argv[1]](*sys.argv[2:])
