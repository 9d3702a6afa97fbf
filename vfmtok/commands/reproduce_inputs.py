"""What a person gives to `vfmtok reproduce`, checked before any weights are fetched: cheaply, in one clear line."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

from vfmtok.commands.evaluation_flags import open_records
from vfmtok.commands.flags import path_of
from vfmtok.data.published_latents import read_statistics
from vfmtok.errors import ConfigError, DataError
from vfmtok.evaluation.image_sources import open_images
from vfmtok.evaluation.inception_weights import find_weights
from vfmtok.losses.perceptual import backbone_file, backbone_url
from vfmtok.pretrained.manifest import Manifest
from vfmtok.pretrained.published import published_file, split_name
from vfmtok.weights.download import is_offline


def check_flags(args: argparse.Namespace, manifest: Manifest) -> None:
    """Raise ConfigError for flags that do not go together or are missing; nothing is opened."""
    if args.num is not None and not 1 <= args.num <= manifest.count:
        raise ConfigError(f"--num must be 1 to {manifest.count}, the published number of images")
    if args.batch_size < 1:
        raise ConfigError("--batch-size must be positive")
    if args.no_fid and args.num is None:
        raise ConfigError("--no-fid leaves out what was published: it goes with --num, for a trial")
    unused, needed = ("ref_batch", "data") if manifest.task == "reconstruction" else ("data", "ref_batch")
    if getattr(args, unused) is not None:
        raise ConfigError(f"--{unused.replace('_', '-')} has no place in a {manifest.task}")
    if manifest.latent_stats is None and args.latent_stats is not None:
        raise ConfigError(f"--latent-stats has no place in {args.name}")
    if args.lpips is not None and not manifest.measures("LPIPS"):
        raise ConfigError(f"--lpips has no place in {args.name}")
    if manifest.latent_stats is not None and args.latent_stats is None and not args.dry_run:
        raise ConfigError(f"name --latent-stats: {manifest.latent_stats.strip()}")
    optional = args.dry_run or (manifest.task == "generation" and args.num is not None)
    if getattr(args, needed) is None and not optional:
        raise ConfigError(f"name --{needed.replace('_', '-')}: {manifest.reference.strip()}")


def check_paths(args: argparse.Namespace, manifest: Manifest) -> None:
    """Raise VFMTokError unless every file and folder that is named is there and of its kind, and --data holds as many
    images as are measured."""
    if args.data is not None:
        _check_data(args.data, args.num, manifest.count)
    if args.ref_batch is not None:
        _check_reference(args.ref_batch, manifest.image_size)
    for flag in ("latent_stats", "lpips"):
        path = getattr(args, flag)
        if path is not None and not Path(path).expanduser().is_file():
            raise ConfigError(f"--{flag.replace('_', '-')}: there is no file {path}")
    if args.latent_stats is not None and (named := split_name(manifest.gpt)) is not None:
        read_statistics(Path(args.latent_stats).expanduser(), published_file(*named).config.code)


def check_networks(args: argparse.Namespace, manifest: Manifest) -> None:
    """Raise VFMTokError unless the networks that measure can be had; the Inception's weights are downloaded here if
    they are nowhere. Every process must call it."""
    if not args.no_fid:
        find_weights(path_of(args.inception), download=not is_offline())
        import vfmtok.evaluation.inception  # noqa: F401  says if torch-fidelity is missing
    if manifest.measures("LPIPS") and args.lpips is None and is_offline() and not backbone_file("vgg").is_file():
        raise ConfigError(
            f"LPIPS needs torchvision's VGG16, which is not at {backbone_file('vgg')}: name it by --lpips "
            f"({backbone_url('vgg')})"
        )


def _check_data(path: str, num: int | None, published: int) -> None:
    try:
        count = len(open_records(path))
    except DataError as error:
        raise DataError(f"--data: {error}; `vfmtok prepare` makes one of images") from None
    if num in (None, published) and count != published:
        most = min(count, published - 1)
        raise ConfigError(
            f"--data {path} holds {count:,} images, the published numbers are of {published:,}: name the whole "
            f"validation set, or give --num (at most {most}) for a trial that compares nothing"
        )
    if num is not None and count < num:
        raise ConfigError(f"--num {num:,} is more than the {count:,} images of --data {path}")


def _check_reference(name: str, size: int) -> None:
    path = Path(name).expanduser()
    if not path.exists():
        raise DataError(f"--ref-batch: there is no file or folder {path}")
    if path.suffix != ".npz":
        if path.is_dir():  # an archive would be unpacked
            open_images(path, size)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {entry.removesuffix(".npy") for entry in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"--ref-batch: {path} is no npz, or was not downloaded to its end: {error}") from None
    if not ({"mu", "sigma"} <= arrays or "arr_0" in arrays):
        raise DataError(f"--ref-batch: {path} is no reference: it has neither mu and sigma nor images in 'arr_0'")
