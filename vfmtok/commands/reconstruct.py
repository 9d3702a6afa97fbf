"""`vfmtok reconstruct IMAGE... --vq-ckpt RUN --out FOLDER`: images beside their reconstructions, and their codes.

Shapes: n images, B batch, K tokens, S side; a code is ids (K,) or latents (C,h,w).
"""

import argparse
import math
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vfmtok import distributed
from vfmtok.code import Code, Ids
from vfmtok.commands import flags
from vfmtok.commands.models import open_tokenizer
from vfmtok.data.loader import BAD_FRACTION
from vfmtok.data.transforms import to_unit_range
from vfmtok.errors import ConfigError, DataError, WeightsError
from vfmtok.evaluation.given_images import ImageFile, find_image_files, read_crops
from vfmtok.evaluation.reconstruction import round_trip
from vfmtok.evaluation.sampling_points import check_tokens, picture_of_points
from vfmtok.files import replace_file, write_json
from vfmtok.layers.precision import full_float32
from vfmtok.pictures.contact_sheet import draw_pair, draw_pairs
from vfmtok.pictures.sampling_points import parse_tokens
from vfmtok.sources.scratch import Scratch
from vfmtok.tokenizers.contract import Tokenizer
from vfmtok.weights.download import reason
from vfmtok.weights.hashing import tokenizer_hash

ON_A_SHEET = 40  # images

ABOUT = """\
Image files and folders of any formats, sizes and orientations. Of each the square in its middle is taken, at the
tokenizer's size, as evaluations do; to keep all of an image that is not square, cut it into squares first. FOLDER gets
pictures/ (input and reconstruction side by side with the PSNR; or, with --sheet, sheet-1.png, ...), ids.npz (ids,
names, the tokenizer's hash; latents.npz of a continuous tokenizer) and report.json (the PSNR of every image, what was
skipped). Given that npz instead of images, the command decodes it."""
EXAMPLES = """for example:
  vfmtok reconstruct photos/ cat.jpg --vq-ckpt results/tok --out seen --points
  vfmtok reconstruct seen/ids.npz --vq-ckpt results/tok --out again"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = ABOUT, EXAMPLES
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files and folders, or one npz of codes")
    flags.add_tokenizer(parser)
    flags.add_set(parser, "tokenizer")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="made if it is not there")
    parser.add_argument("--sheet", action="store_true", help=f"{ON_A_SHEET} images a picture instead of one")
    parser.add_argument("--points", action="store_true", help="draw where the tokens look, into FOLDER/points")
    parser.add_argument("--tokens", metavar="N,N", help="tokens whose points are drawn (default: four)")
    parser.add_argument("--image-size-eval", type=int, metavar="N", help="side of what is compared and shown")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at a time (default 16)")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError."""
    decoding = len(args.images) == 1 and Path(args.images[0]).suffix == ".npz"
    _check_options(args, decoding)
    out = Path(args.out).expanduser()
    inputs = [Path(path).expanduser() for path in args.images]
    for path in inputs:
        _check_apart(path, out)
    with distributed.group() as world, Scratch(out) as scratch:
        if world.size > 1:
            raise ConfigError("`vfmtok reconstruct` runs in one process; vqgan_test.py shares a dataset among many")
        files = [] if decoding else find_image_files(inputs, scratch)
        tokenizer = open_tokenizer(args, world.device, encodes=not decoding)
        size = args.image_size_eval or tokenizer.config.image_size
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot make {out}: {error.strerror}") from None
        if decoding:
            _decode(tokenizer, inputs[0], out, size, args.batch_size, world.device)
        else:
            _reconstruct(tokenizer, files, out, size, args, world.device)


def _check_apart(path: Path, out: Path) -> None:
    """Raises ConfigError if pictures of this run would be written among the images it reads, or over them."""
    image, folder = path.resolve(), out.resolve()
    if path.is_dir() and folder.is_relative_to(image):
        raise ConfigError(f"--out {out} lies in {path}: the next run would take its pictures for images")
    below = any(image.is_relative_to(folder / name) for name in ("pictures", "points", "decoded"))
    if below or (image.parent == folder and image.match("sheet-*.png")):
        raise ConfigError(f"{path} lies where --out {out} gets its own pictures, which would replace it")


def _check_options(args: argparse.Namespace, decoding: bool) -> None:
    if args.batch_size < 1 or (args.image_size_eval is not None and args.image_size_eval < 1):
        raise ConfigError("--batch-size and --image-size-eval must be positive")
    given = [name for name in ("sheet", "points", "tokens") if getattr(args, name)]
    if decoding and given:
        raise ConfigError(f"--{given[0]} needs images; ids have only their reconstructions")
    if args.tokens is not None and not args.points:
        raise ConfigError("--tokens belongs to --points")


# --------------------------------------------------------------------------------------
# Images -> ids and pictures
# --------------------------------------------------------------------------------------


def _reconstruct(
    tokenizer: Tokenizer, files: list[ImageFile], out: Path, size: int, args: argparse.Namespace, device: torch.device
) -> None:
    """What can be read is reconstructed and written; then, if too much could not, DataError is raised."""
    tokens = parse_tokens(args.tokens)
    if args.points:
        check_tokens(tokenizer, tokens, "--points")
    picture_of = _picture_names([file.name for file in files])
    codes, rows, skipped, sheet = [], [], [], _Sheet(out) if args.sheet else None
    side = tokenizer.config.image_size
    with tqdm(total=len(files), unit="image", disable=None if len(files) > args.batch_size else True) as bar:
        for start in range(0, len(files), args.batch_size):
            part = files[start : start + args.batch_size]
            batch = list(zip(part, read_crops(part, side), strict=True))
            skipped += [{"name": file.name, "reason": crop} for file, crop in batch if isinstance(crop, str)]
            good = [(file.name, crop) for file, crop in batch if not isinstance(crop, str)]
            if good:
                names = [name for name, _ in good]
                images = torch.stack([crop for _, crop in good]).to(device)  # (B,3,S,S)
                found = round_trip(tokenizer, images, size)
                codes.append(found.code.cpu())
                values = found.psnr().tolist()
                pairs = list(zip(found.originals.cpu().numpy(), found.decoded.cpu().numpy(), strict=True))
                rows += [{"name": name, "psnr": value} for name, value in zip(names, values, strict=True)]
                for name, value, pair in zip(names, values, pairs, strict=True):
                    if sheet is None:
                        _save(draw_pair(*pair, name, f"{value:.2f} dB"), out / "pictures" / picture_of[name])
                    else:
                        sheet.add(*pair, name, value)
                if args.points:
                    for name, image in zip(names, to_unit_range(images), strict=True):
                        points = picture_of_points(tokenizer, image[None], tokens)
                        _save(points, out / "points" / picture_of[name])
            bar.update(len(batch))
    if sheet is not None:
        sheet.write()
    protocol = f"PSNR in dB of uint8 RGB at {size} px, peak 255, centre crop at {side} px, decoded in float32"
    _finish(tokenizer, out, codes, rows, skipped, protocol)


def _finish(
    tokenizer: Tokenizer, out: Path, codes: list[Tensor], rows: list[dict], skipped: list[dict], protocol: str
) -> None:
    """The codes, report.json and what is printed. Raises DataError if too many files were bad."""
    lossy = [row["psnr"] for row in rows if math.isfinite(row["psnr"])]
    mean = sum(lossy) / len(lossy) if lossy else None
    if exact := len(rows) - len(lossy):  # JSON has no infinity
        protocol += f"; {exact} that came back exactly have none (null) and are not in the mean"
        rows = [row if math.isfinite(row["psnr"]) else {**row, "psnr": None} for row in rows]
    fingerprint = tokenizer_hash(tokenizer)
    write_json(
        out / "report.json",
        {"protocol": protocol, "psnr": mean, "tokenizer_hash": fingerprint, "images": rows, "skipped": skipped},
    )
    if rows:
        names = np.array([row["name"] for row in rows])  # (n,)
        arrays = {"names": names, "tokenizer_hash": np.array(fingerprint)}
        arrays |= _as_arrays(torch.cat(codes), tokenizer.code)
        file_name = "ids.npz" if isinstance(tokenizer.code, Ids) else "latents.npz"
        replace_file(out / file_name, lambda file: np.savez_compressed(file, **arrays))
        said = "none" if mean is None else f"{mean:.2f} dB"
        print(f"{out}: {len(rows)} images, mean {said} ({protocol})")
    for entry in skipped[:10]:
        print(f"skipped {entry['name']}: {entry['reason']}", file=sys.stderr)
    count = len(rows) + len(skipped)
    if len(skipped) > BAD_FRACTION * count:
        done = f"the other {len(rows)} are done" if rows else "nothing is left"
        raise DataError(f"{len(skipped)} of {count} files are bad, listed in {out / 'report.json'}; {done}")
    if skipped:
        print(f"warning: skipped {len(skipped)} of {count} files, listed in {out / 'report.json'}", file=sys.stderr)


def _as_arrays(codes: Tensor, code: Code) -> dict[str, np.ndarray]:
    """ids (n,K) unsigned with the largest codebook's size, or latents (n,C,h,w) float32."""
    if not isinstance(code, Ids):
        return {"latents": codes.float().numpy()}
    codebook = code.largest_codebook
    dtype = np.uint16 if codebook <= 2**16 else np.uint32
    return {"ids": codes.numpy().astype(dtype), "codebook_size": np.array(codebook)}


class _Sheet:
    """Pairs on as many sheets as they need, each written once it is full."""

    def __init__(self, out: Path):
        self.out, self.number, self.held = out, 0, []

    def add(self, original: np.ndarray, decoded: np.ndarray, name: str, value: float) -> None:
        self.held.append((original, decoded, name, value))
        if len(self.held) == ON_A_SHEET:
            self.write()

    def write(self) -> None:
        if not self.held:
            return
        self.number += 1
        originals, decoded, names, values = zip(*self.held, strict=True)
        captions = [(name, f"{value:.1f} dB") for name, value in zip(names, values, strict=True)]
        title = f"Input and reconstruction, {len(names)} images: mean PSNR {sum(values) / len(values):.2f} dB"
        _save(
            draw_pairs(np.stack(originals), np.stack(decoded), captions, title), self.out / f"sheet-{self.number}.png"
        )
        self.held = []


def _picture_names(names: list[str]) -> dict[str, str]:
    """The PNG of every image. Other suffixes stay in its name, for a.jpg and a.webp may lie in one folder."""
    taken, pictures = set(names), {}
    for name in names:
        picture = name if name.lower().endswith(".png") else f"{name}.png"
        while picture != name and picture in taken:
            picture += ".png"
        taken.add(picture)
        pictures[name] = picture
    return pictures


def _save(picture: Image.Image, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make {path.parent}: {error.strerror}") from None
    replace_file(path, lambda file: picture.save(file, "PNG"))


# --------------------------------------------------------------------------------------
# Codes -> images
# --------------------------------------------------------------------------------------


def _decode(tokenizer: Tokenizer, path: Path, out: Path, size: int, batch: int, device: torch.device) -> None:
    """Every image of an npz of codes as a PNG in ``out``/decoded. Raises DataError, WeightsError."""
    found = read_codes(path)
    codes, names = found["codes"], found["names"]
    fingerprint, picture_of = tokenizer_hash(tokenizer), _picture_names(names)
    if found["tokenizer_hash"] != fingerprint:
        raise WeightsError(
            f"{path} holds the codes of another tokenizer (hash {found['tokenizer_hash'][:12]}..., this one has "
            f"{fingerprint[:12]}...)"
        )
    _check_codes(codes, tokenizer.code, path)
    dtype = np.int64 if isinstance(tokenizer.code, Ids) else np.float32
    with tqdm(total=len(codes), unit="image", disable=None if len(codes) > batch else True) as bar:
        for start in range(0, len(codes), batch):
            part = torch.from_numpy(codes[start : start + batch].astype(dtype)).to(device)  # (B,K) or (B,C,h,w)
            with full_float32(device.type):
                pixels = tokenizer.decode_to_uint8(part, size).cpu().numpy()  # (B,S,S,3)
            for name, image in zip(names[start : start + batch], pixels, strict=True):
                _save(Image.fromarray(image), out / "decoded" / picture_of[name])
            bar.update(len(part))
    print(f"{out / 'decoded'}: {len(codes)} images of {size} px")


def _check_codes(codes: np.ndarray, code: Code, path: Path) -> None:
    """Raise DataError unless these are codes (n,...) of such a tokenizer."""
    fits = codes.shape[1:] == tuple(code.shape) and (codes.dtype.kind == "u") == isinstance(code, Ids)
    if fits and isinstance(code, Ids):
        parts = zip(code.segments, code.slices(), strict=True)
        fits = all(codes[:, place].max(initial=0) < segment.size for segment, place in parts)
    elif fits:
        fits = bool(np.isfinite(codes).all())
    if not fits:
        raise DataError(f"{path} is damaged: its codes are not those of {code} an image")


def read_codes(path: Path) -> dict[str, Any]:
    """Of an npz: codes (ids (n,K) unsigned or latents (n,C,h,w)), names (n), tokenizer_hash. Raises DataError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            codes = archive["latents" if "latents" in archive.files else "ids"]
            names, fingerprint = archive["names"].tolist(), str(archive["tokenizer_hash"])
    except Exception as error:  # damaged archives raise nearly anything
        raise DataError(f"{path} is not an npz of `vfmtok reconstruct`: {reason(error)}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) and "\0" not in name for name in names):
        raise DataError(f"{path} is not an npz of `vfmtok reconstruct`: its names are no names")
    unsafe = [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    apart = codes.ndim in (2, 4) and len(set(names)) == len(names) == len(codes)
    if not apart or codes.dtype.kind != ("u" if codes.ndim == 2 else "f") or unsafe:
        raise DataError(f"{path} is not an npz of `vfmtok reconstruct`: its arrays do not fit together")
    return {"codes": codes, "names": names, "tokenizer_hash": fingerprint}
