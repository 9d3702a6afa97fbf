"""`vfmtok reproduce NAME`: a published number measured again, and whether it is what was published.

reproduce_inputs checks what a person gives before anything is fetched; reproduce_verdict is what is printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfmtok.commands import flags
from vfmtok.errors import ConfigError, SharedError

if TYPE_CHECKING:
    from vfmtok.distributed import World
    from vfmtok.pretrained.manifest import Manifest, Variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure a published number and say whether it is what was published: exit code 0 if every number that decides "
        "is within its band, 2 if not. The weights come from the cache or the Hub; the images (--data, of a tokenizer) "
        "or the reference (--ref-batch, of a generator) are yours to name. --list shows the names, --dry-run what "
        "decides. With --num fewer images are measured, and nothing passes or fails. The run is vqgan_test.py's or "
        "test_net.py's: the same command again continues it, and torchrun shares the work."
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="of --list, or a manifest's YAML file")
    parser.add_argument("--list", action="store_true", help="list the published numbers that there are")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, and run nothing")
    parser.add_argument("--num", type=int, metavar="N", help="only so many images: a trial, not a comparison")
    text = "the 50,000 validation images: a prepared folder or an LMDB (tokenizers)"
    parser.add_argument("--data", metavar="PATH", help=text)
    text = f"ADM's npz ({flags.ADM_REFERENCE}), or another reference (generators)"
    parser.add_argument("--ref-batch", metavar="PATH", help=text)
    text = "of the latents, where a generator of latents was published without them"
    parser.add_argument(*flags.names("--latent-stats"), metavar="FILE", help=text)
    flags.add_inception(parser)
    flags.add_lpips(parser)
    flags.add_hub(parser, "fetch nothing: weights come from the cache alone; HF_HUB_OFFLINE=1 too")
    parser.add_argument(
        *flags.names("--results-dir"), default="results/reproduce", metavar="DIR", help="(default results/reproduce)"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="per process (default 32)")
    flags.add_set(parser, "tokenizer", "generator")
    parser.add_argument("--no-fid", action="store_true", help="without the Inception network; only with --num")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError; SharedError where a number is not what was published."""
    # PyTorch takes seconds, which `vfmtok reproduce --help` should not wait.
    from vfmtok import distributed
    from vfmtok.commands import reproduce_inputs
    from vfmtok.commands.reproduce_verdict import described, listed
    from vfmtok.pretrained.manifest import find_manifest
    from vfmtok.weights.download import hub_access

    if args.list:
        return print("\n".join(listed()))
    if args.name is None:
        raise ConfigError("name what to reproduce, or ask --list")
    manifest = find_manifest(args.name)
    reproduce_inputs.check_flags(args, manifest)
    script, arguments = script_arguments(manifest, args)
    lines = described(manifest, script, arguments, [_varied([], variant) for variant in manifest.variants])
    if args.dry_run:
        return distributed.print_main("\n".join(lines))
    with distributed.group() as world, hub_access(args.cache_dir, args.offline or None):
        with distributed.together():
            reproduce_inputs.check_paths(args, manifest)
        with distributed.together():
            reproduce_inputs.check_networks(args, manifest)
        distributed.print_main("\n".join(lines))
        _measure(args, manifest, arguments, world)
    return None


def _measure(args: argparse.Namespace, manifest: Manifest, arguments: list[str], world: World) -> None:
    from vfmtok import distributed
    from vfmtok.commands.evaluation_flags import reconstruction_parser
    from vfmtok.commands.evaluation_scripts import measure_tokenizer
    from vfmtok.commands.reproduce_verdict import beside, verdict

    if manifest.task == "reconstruction":
        results = measure_tokenizer(reconstruction_parser().parse_args(arguments), world, args.num)
    else:
        results = _measure_samples(arguments, world)
    lines, failed = verdict(manifest, results, trial=args.num is not None)
    for variant in manifest.variants:
        found = _measure_samples(_varied(arguments, variant), world)
        lines += [f"  {variant.name}, which decides nothing:", *beside(manifest, found)]
    distributed.print_main("\n".join(lines))
    if failed:
        raise SharedError(f"{manifest.title}: FAILED, {failed}")


def _measure_samples(arguments: list[str], world: World) -> dict[str, Any]:
    from vfmtok.commands.evaluation_flags import generation_parser
    from vfmtok.commands.evaluation_scripts import measure_generator

    (results,) = measure_generator(generation_parser().parse_args(arguments), world).values()
    return results


def _varied(arguments: list[str], variant: Variant) -> list[str]:
    """A setting given twice has its last value, so the variant's go last."""
    return [*arguments, *(word for setting in variant.settings for word in ("--sampling", setting))]


def script_arguments(manifest: Manifest, args: argparse.Namespace) -> tuple[str, list[str]]:
    """The script and its arguments that measure this; what is not named yet stands as NAME-OF-FLAG."""
    folder = str(Path(args.results_dir) / Path(args.name.replace(".yaml:", "-")).stem) + (
        f"-{args.num}" if args.num else ""
    )
    common = ["--vq-ckpt", manifest.tokenizer, "--image-size-eval", str(manifest.image_size)]
    settings = [f"tokenizer.{setting}" for setting in manifest.tokenizer_settings]
    common += [word for change in (*settings, *args.set) for word in ("--set", change)]
    common += ["--inception", args.inception] if args.inception else []
    common += ["--no-fid"] if args.no_fid else []
    common += ["--prefer", manifest.prefer]
    if manifest.task == "reconstruction":
        own = ["--anno-file", args.data or "DATA", "--output_dir", folder, "--batch-size", str(args.batch_size)]
        # A trial is compared with its own originals: measuring the whole dataset takes longer than the trial.
        is_whole = args.num in (None, manifest.count)
        own += ["--reference", args.data or "DATA"] if is_whole and manifest.rfid_against == "dataset" else []
        own += ["--resize", manifest.resize] if manifest.resize != "bicubic" else []
        own += ["--protocol", manifest.protocol] if manifest.protocol != "ours" else []
        lpips = ["--lpips", args.lpips] if args.lpips else []
        return "vqgan_test.py", [*common, *own, *(lpips if manifest.measures("LPIPS") else ["--no-lpips"])]
    own = ["--gpt-ckpt", manifest.gpt, "--sample-dir", folder]
    own += ["--gpt-model", manifest.gpt_model] if manifest.gpt_model else []
    own += ["--num-fid-samples", str(args.num or manifest.count), "--per-proc-batch-size", str(args.batch_size)]
    own += ["--latent-stats", args.latent_stats or "LATENT-STATS"] if manifest.latent_stats else []
    own += manifest.sampling.flags()
    reference = args.ref_batch or (None if args.num else "REF-BATCH")
    return "test_net.py", [*common, *own, *(["--ref-batch", reference] if reference else [])]
