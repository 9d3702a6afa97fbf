"""Features of any tokenizer, foundation model and generator, one row an image, and how alike their neighbourhoods are.

A row is a mean over positions: of latents or code vectors, of region tokens, of a foundation model's last level behind
its final norm, of what a generator's block makes of the image's code.

Shapes: n images, B batch, K tokens, S image side, D features.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmtok.code import Ids
from vfmtok.data.loader import ImageLoader
from vfmtok.data.order import BlockOrder, evenly_spaced
from vfmtok.data.records import RecordDataset
from vfmtok.data.transforms import EvaluationCrop, to_unit_range
from vfmtok.encoders.config import EncoderConfig
from vfmtok.encoders.vfm import Encoder
from vfmtok.errors import ConfigError
from vfmtok.evaluation.alignment_conditions import CLEAN, CONDITIONS, DISTURBED, disturbed
from vfmtok.generators.contract import Generator
from vfmtok.generators.counter_random import Draws
from vfmtok.layers.precision import full_float32
from vfmtok.metrics.neighbour_alignment import NEIGHBOURS, alignment, cka, mutual_neighbours, neighbours, prepared
from vfmtok.tokenizers.contract import Tokenizer, code_of

BATCH = 32


@dataclass(frozen=True)
class Source:
    """A model whose features are read.

    Attributes:
        name: for people.
        size: px, the side of the images it sees.
        read: (images (B,3,S,S) in [-1,1], their numbers (B,) int64) -> what it is: (B,D).
        what: of everything that ``read`` gives, what it is a mean of.
        sees_smaller: a shrunk image is given to it as it is; else enlarged to ``size`` again.
    """

    name: str
    size: int
    read: Callable[[Tensor, Tensor], dict[str, Tensor]]
    what: dict[str, str]
    sees_smaller: bool
    device: torch.device


# --------------------------------------------------------------------------------------
# Models as sources
# --------------------------------------------------------------------------------------


def tokenizer_source(name: str, tokenizer: Tokenizer) -> Source:
    """Its latents or code vectors, its region tokens where it has any, and its frozen encoder's last level."""
    size, device = tokenizer.config.image_size, tokenizer.device

    def read(images: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        encoding = tokenizer.encode(images)
        found = {"latents": _mean_code(tokenizer, encoding)}
        if hasattr(encoding, "region_tokens"):
            found["region tokens"] = encoding.region_tokens.float().mean(dim=1)
        if getattr(tokenizer, "frozen_parts", ()) and getattr(encoding, "features", None):
            found["encoder"] = encoding.features[-1].float().mean(dim=1)
        return found

    with torch.no_grad():
        kinds = read(torch.zeros(1, 3, size, size, device=device), torch.zeros(1, dtype=torch.int64))
    code, latents = tokenizer.code, "latents"
    if isinstance(code, Ids):
        latents = "vectors of ids" if hasattr(tokenizer, "code_vectors") else "latents before quantization"
    of = {"latents": f"{latents} ({code})", "region tokens": "region tokens", "encoder": "its encoder's last level"}
    return Source(name, size, read, {kind: of[kind] for kind in kinds}, _sees_smaller(tokenizer, size), device)


def encoder_source(name: str, config: EncoderConfig, device: torch.device) -> Source:
    """The last level of a foundation model, behind its final norm. Raises ConfigError or WeightsError."""
    whole = Encoder(dataclasses.replace(config, levels=(1,)))
    encoder = Encoder(dataclasses.replace(whole.config, levels=(whole.available_levels,))).eval().to(device)

    def read(images: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        return {"encoder": encoder(images)[-1].float().mean(dim=1)}

    what = {"encoder": f"level {whole.available_levels} of {config.name} at {config.image_size} px"}
    return Source(name, config.image_size, read, what, True, device)


def generator_source(name: str, tokenizer: Tokenizer, generator: Generator, blocks: Sequence[int]) -> Source:
    """What the blocks (from 1) of a generator make of an image's code without a class.

    Of ids the next ones are predicted; latents are normalised and half way to noise, which is a function of the image's
    number. Tokens that stand for no place (the class) are left out.

    Raises ConfigError: there is no such block.
    """
    layers, size = list(getattr(generator, "layers", ())), tokenizer.config.image_size
    for block in blocks:
        if not 1 <= block <= len(layers):
            raise ConfigError(f"--blocks: the generator {name} has blocks 1 to {len(layers)}, got {block}")

    def read(images: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        code = code_of(tokenizer.encode(images), tokenizer.code)
        found: dict[str, Tensor] = {}
        with contextlib.ExitStack() as hooks:
            for block in blocks:
                keep = _keeping(found, f"block {block}")
                hooks.callback(layers[block - 1].register_forward_hook(keep).remove)
            _run(generator, code, numbers.to(code.device))
        return {kind: _of_places(tokens, generator).float().mean(dim=1) for kind, tokens in found.items()}

    state = "ids" if isinstance(generator.code, Ids) else "latents half way to noise"
    what = {f"block {block}": f"block {block} of {len(layers)}, of {state}, without a class" for block in blocks}
    return Source(name, size, read, what, False, tokenizer.device)


def _keeping(found: dict[str, Tensor], kind: str) -> Callable:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found[kind] = output[0] if isinstance(output, tuple) else output

    return keep


def _run(generator: Generator, code: Tensor, numbers: Tensor) -> None:
    """A pass of the generator in eval mode, without a class."""
    draws = Draws(0, numbers)
    if hasattr(generator, "pass_over"):
        generator.pass_over(code, draws)
    else:
        generator.loss(code, torch.full((len(code),), generator.null_class, device=code.device), draws)


def _of_places(tokens: Tensor, generator: Generator) -> Tensor:
    """(B,T,D) -> without the tokens before those of the image."""
    count = generator.image_tokens if hasattr(generator, "image_tokens") else generator.code.num_tokens
    return tokens[:, -count:]


def _mean_code(tokenizer: Tokenizer, encoding: Any) -> Tensor:
    """(B,D): latents, or the vectors of ids, of every segment side by side."""
    code = tokenizer.code
    if not isinstance(code, Ids):
        return encoding.latents.float().flatten(2).mean(dim=2)
    if not hasattr(tokenizer, "code_vectors"):
        latents = encoding.latents if isinstance(encoding.latents, tuple) else (encoding.latents,)
        return torch.cat([part.float().mean(dim=1) for part in latents], dim=1)
    shares = _segments_of(encoding.ids, code)
    return torch.cat(
        [tokenizer.code_vectors(number)[ids].float().mean(dim=1) for number, ids in enumerate(shares)], dim=1
    )


def _segments_of(ids: Tensor, code: Ids) -> list[Tensor]:
    """The ids of each segment; of a smaller image the segments with a place in it are shorter."""
    fixed = sum(segment.count for segment in code.segments if segment.grid is None)
    placed = sum(segment.count for segment in code.segments if segment.grid is not None)
    share = (ids.shape[1] - fixed) / placed if placed else 1
    return list(ids.split([s.count if s.grid is None else round(s.count * share) for s in code.segments], dim=1))


def _sees_smaller(tokenizer: Tokenizer, size: int) -> bool:
    """Whether it encodes images of all sizes that shrinking makes."""
    try:
        with torch.no_grad():
            for scale in (0.75, 0.5, 0.25):
                side = round(size * scale)
                tokenizer.encode(torch.zeros(1, 3, side, side, device=tokenizer.device))
    except (ValueError, ConfigError):  # how tokenizers refuse a size
        return False
    return True


# --------------------------------------------------------------------------------------
# Features and numbers
# --------------------------------------------------------------------------------------


def read_features(
    source: Source, records: RecordDataset, count: int, num_workers: int = 0, conditions: Sequence[str] = CONDITIONS
) -> dict[tuple[str, str], Tensor]:
    """(what, condition) -> (n,D) float32 of n = ``count`` records at equal distances, or all of fewer.

    Raises DataError: too many are bad. In the place of a bad one is the next good one.
    """
    indices = evenly_spaced(min(count, len(records)), len(records))
    blocks = [indices[start : start + BATCH] for start in range(0, len(indices), BATCH)]
    loader = ImageLoader(records, EvaluationCrop(source.size), BlockOrder(blocks), num_workers=num_workers)
    found: dict[tuple[str, str], list[Tensor]] = {}
    first = 0
    with contextlib.closing(loader), torch.no_grad(), full_float32(source.device.type):
        for batch in loader:
            pixels = batch.images.permute(0, 2, 3, 1).numpy()  # (B,S,S,3)
            for condition in conditions:
                for what, values in _features_of(source, pixels, first, condition).items():
                    found.setdefault((what, condition), []).append(values)
            first += len(pixels)
    return {key: torch.cat(values) for key, values in found.items()}


def _features_of(source: Source, pixels: np.ndarray, first: int, condition: str) -> dict[str, Tensor]:
    """(B,S,S,3) uint8, the images from number ``first`` -> what it is: (B,D) float32. Alike scales go together."""
    seen = [disturbed(image, first + row, condition) for row, image in enumerate(pixels)]
    rows_of: dict[float, list[int]] = {}
    for row, (_, scale) in enumerate(seen):
        rows_of.setdefault(scale, []).append(row)
    found: dict[str, Tensor] = {}
    for scale, rows in rows_of.items():
        stacked = np.stack([np.ascontiguousarray(seen[row][0]) for row in rows])
        images = to_unit_range(torch.from_numpy(stacked).permute(0, 3, 1, 2).to(source.device))  # (b,3,S,S)
        numbers = torch.tensor([first + row for row in rows])
        for what, values in source.read(_shrunk(images, scale, source.sees_smaller), numbers).items():
            whole = found.setdefault(what, torch.empty(len(pixels), values.shape[1]))
            whole[rows] = values.float().cpu()
    return found


def _shrunk(images: Tensor, scale: float, stays: bool) -> Tensor:
    """images (B,3,S,S) -> shrunk (bilinear, antialiased), and enlarged to S again unless it ``stays`` so."""
    if scale == 1:
        return images
    side = images.shape[-1]
    small = F.interpolate(images, (round(side * scale),) * 2, mode="bilinear", align_corners=False, antialias=True)
    return small if stays else F.interpolate(small, (side, side), mode="bilinear", align_corners=False)


def aligned(features: dict[str, dict[str, Tensor]], k: int = NEIGHBOURS) -> list[dict[str, Any]]:
    """Model -> condition -> (n,D) -> one entry for every pair of models and condition, then SE-CKNNA of the pair.

    An entry has "models", "metric", "condition", "value", "n" and "k". Metrics are "cknna"; "se_cknna", its mean over
    the disturbed conditions; "mutual_knn", the share of common neighbours; "cka", of all pairs of images. Both models
    see the same images.

    Raises EvaluationError: there are too few images, or features without a direction.
    """
    conditions = list(next(iter(features.values())))
    entries, values = [], {}
    for condition in conditions:
        ready = {model: prepared(by_condition[condition]) for model, by_condition in features.items()}
        near = {model: neighbours(rows, k) for model, rows in ready.items()}
        for pair in itertools.combinations(features, 2):
            first, second = pair
            values[pair, condition] = alignment(near[first], near[second])
            found = {
                "cknna": values[pair, condition],
                "mutual_knn": mutual_neighbours(near[first], near[second]),
                "cka": cka(ready[first], ready[second]),
            }
            about = {"models": list(pair), "condition": condition, "n": len(ready[first]), "k": k}
            entries += [{**about, "metric": metric, "value": value} for metric, value in found.items()]
    for pair in itertools.combinations(features, 2):
        if all((pair, condition) in values for condition in DISTURBED):
            mean = sum(values[pair, condition] for condition in DISTURBED) / len(DISTURBED)
            about = {"models": list(pair), "condition": f"mean over {', '.join(DISTURBED)}", "k": k}
            entries.append({**about, "n": len(features[pair[0]][DISTURBED[0]]), "metric": "se_cknna", "value": mean})
    return entries


def value_of(entries: list[dict[str, Any]], first: str, second: str, metric: str, condition: str = CLEAN) -> float:
    """Of two models in whichever order; ``condition`` is not asked of SE-CKNNA."""
    return next(
        entry["value"]
        for entry in entries
        if set(entry["models"]) == {first, second}
        and entry["metric"] == metric
        and (metric == "se_cknna" or entry["condition"] == condition)
    )
