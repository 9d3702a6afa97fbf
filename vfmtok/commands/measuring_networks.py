"""The networks and probes that vqgan_test.py and test_net.py measure with, as their flags name them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vfmtok import distributed
from vfmtok.commands import flags
from vfmtok.commands.flags import path_of
from vfmtok.data.dataset_folder import open_split
from vfmtok.errors import ConfigError
from vfmtok.evaluation.encoder_distance import EncoderDistance, open_encoder
from vfmtok.evaluation.reconstruction_numbers import Measures
from vfmtok.evaluation.token_probe import TokenProbe
from vfmtok.metrics.probe import ProbeRecipe

if TYPE_CHECKING:  # they need torch-fidelity, which --no-fid does without
    from vfmtok.evaluation.inception import Inception
    from vfmtok.evaluation.reference import ReferenceSet


def open_probe(args: argparse.Namespace) -> TokenProbe | None:
    """The linear probe, if it is asked for; of a prepared folder its training split. Raises DataError."""
    if args.linear_probe is None:
        if args.probe_optimizer is not None:
            raise ConfigError("--probe-optimizer belongs to --linear-probe")
        return None
    train = open_split(Path(args.linear_probe).expanduser(), "train")
    return TokenProbe(train, ProbeRecipe(args.probe_optimizer or "lars"))


def open_measures(args: argparse.Namespace, world: distributed.World, probe: TokenProbe | None) -> Measures:
    """What vqgan_test.py measures beyond the pixels; every process must call it. Raises VFMTokError."""
    from vfmtok.evaluation.lpips import open_lpips

    notes, chosen, distance = [], flags.measuring_encoder(args, "--distance"), None
    if chosen is not None:
        with distributed.together():
            distance = EncoderDistance(open_encoder(*chosen, every_level=True).to(world.device))
    lpips, weights = (None, "--no-lpips") if args.no_lpips else open_lpips(path_of(args.lpips), world)
    if lpips is None:
        notes.append(f"LPIPS is left out: {weights}")
    inception, reference = None, None
    if args.no_fid:
        notes.append("rFID and rIS are left out: --no-fid")
    else:
        from vfmtok.evaluation.inception import open_inception
        from vfmtok.evaluation.reference import open_reference

        inception = open_inception(path_of(args.inception), world)
        if args.reference:
            where, size = path_of(args.reference), args.image_size_eval
            reference = open_reference(where, inception, size, args.batch_size, world)
    lpips_sha256 = weights if lpips else None
    return Measures(
        inception, reference, lpips, lpips_sha256, distance, probe, tuple(notes), args.resize, args.protocol
    )


def open_references(
    args: argparse.Namespace, size: int, world: distributed.World
) -> tuple[Inception | None, ReferenceSet | None]:
    """What test_net.py compares its samples with; every process must call it. Raises VFMTokError."""
    if args.no_fid:
        return None, None
    from vfmtok.evaluation.inception import open_inception
    from vfmtok.evaluation.reference import open_reference_set

    inception = open_inception(path_of(args.inception), world, args.spatial_tap)
    if not args.reference:
        return inception, None
    where, batch = path_of(args.reference), args.per_proc_batch_size
    return inception, open_reference_set(where, inception, size, batch, world)
