"""A tiny tokenizer with its encoder, images, their token caches, and a generator trained on them."""

from pathlib import Path

import numpy as np
import timm
import torch
from photographs import jpeg, photographs
from small_caches import CLASSES
from training_runs import ROOT

import vfmtok
from vfmtok import cli, distributed
from vfmtok.data.records import Record, write_records
from vfmtok.pictures.style import CAPTION, GAP, MARGIN, TITLE

ALONE = distributed.World(0, 1, torch.device("cpu"))
GPT = {"vocab_size": 64}


class Place:
    """24 images, 6 held out, a tiny tokenizer with its encoder, and the token cache of the images."""

    def __init__(self, folder: Path):
        self.folder = folder
        images = [photo.resize((40, 36)) for photo in photographs()]
        for split, count, start in (("train", 24, 0), ("val", 6, 60)):
            records = [Record(jpeg(images[i % 8].rotate(5 * i + start)), i % 3, f"{i}.jpg") for i in range(count)]
            write_records(folder / f"images/{split}_lmdb", records, classes=CLASSES)
        torch.manual_seed(0)
        torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), folder / "encoder.pt")
        config = vfmtok.load_config(ROOT / "configs/tiny.yaml", [f"encoder.weights={folder}/encoder.pt"])
        vfmtok.save_config(config, folder / "tokenizer.yaml")
        self.tokenizer = vfmtok.VFMTok(config).eval()
        torch.save(vfmtok.to_released(self.tokenizer), folder / "tokenizer.pt")
        for split in ("train", "val"):
            out = ["codes", str(folder / f"images/{split}_lmdb"), str(folder / split), *self.named]
            assert cli.main([*out, "--views", "center", "--num-workers", "0"]) == 0

    @property
    def named(self) -> list[str]:
        return [
            "--vq-ckpt",
            f"{self.folder}/tokenizer.pt",
            "--transformer-config-file",
            f"{self.folder}/tokenizer.yaml",
        ]

    def data(self, **changes) -> dict:
        return {"vq_ckpt": f"{self.folder}/tokenizer.pt", "vq_config": f"{self.folder}/tokenizer.yaml", **changes}


def cell(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    """An image of ``draw_rows``, enlarged from 32 to 128 pixels."""
    top, left = MARGIN + TITLE + row * (128 + CAPTION) + CAPTION, MARGIN + column * (128 + GAP)
    return picture[top : top + 128, left : left + 128]


def sample(place, run, out, *more):
    return cli.main(["sample", "--gpt", str(run), *place.named, "--out", str(out), "--n", "5", *more])
