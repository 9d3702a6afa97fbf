"""The same images through every row: held-out images and what the row's tokenizer makes of them, and generated images
of the same classes and seeds.

Shapes: n images, c classes, S side.
"""

import io
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from vfmtok import distributed
from vfmtok.data.dataset_folder import open_split
from vfmtok.data.order import evenly_spaced
from vfmtok.data.transforms import EvaluationCrop
from vfmtok.errors import DataError
from vfmtok.evaluation.reconstruction import round_trip
from vfmtok.files import replace_file
from vfmtok.generators.contract import at_scale
from vfmtok.generators.drawing import draw_images
from vfmtok.pretrained.loading import load_generator, load_tokenizer
from vfmtok.study.steps import Plan, Step

IMAGES, CLASSES, SIDE = 10, 6, 128  # held-out images, classes, and the side at which large ones are kept
GUIDANCE = 2.0


def write_images(step: Step, plan: Plan) -> None:
    """Leave images.npz in the step's folder: "originals", "decoded" (n,S,S,3); with a generator "samples" (2c,S,S,3).

    Raises VFMTokError.
    """
    world = distributed.World(0, 1, distributed.start().device)
    flags = dict(zip(step.flags[::2], step.flags[1::2], strict=True))
    tokenizer = load_tokenizer(flags["--vq-ckpt"], flags.get("--transformer-config-file")).to(world.device).eval()
    records = open_split(plan.data.path, "val")
    size = tokenizer.config.image_size
    crop, chosen = EvaluationCrop(size), evenly_spaced(IMAGES, len(records)).tolist()
    crops = torch.stack([crop(records[index].image, 0, index) for index in chosen])  # (n,3,S,S)
    found = round_trip(tokenizer, crops.to(world.device), min(size, SIDE))
    arrays = {"originals": found.originals.cpu().numpy(), "decoded": found.decoded.cpu().numpy()}
    generators = [parent for parent in step.parents if parent.kind == "generator"]
    if generators:
        generator, _ = load_generator(generators[0].out, tokenizer, None, {})
        labels = torch.from_numpy(evenly_spaced(CLASSES, plan.data.num_classes)).long().repeat_interleave(2)
        settings = asdict(at_scale(generator.sampling(), GUIDANCE))
        arrays["samples"] = draw_images(
            generator.to(world.device), tokenizer, labels, min(size, SIDE), 12, world, seed=0, **settings
        )
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    replace_file(step.folder / "images.npz", lambda file: file.write(content.getvalue()))


def read_images(step: Step) -> dict[str, Any]:
    """What ``write_images`` left. Raises DataError."""
    path = step.folder / "images.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} ({error}): delete {step.folder} and run again") from None
