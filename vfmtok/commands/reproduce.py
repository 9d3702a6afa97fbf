"""`vfmtok reproduce NAME`: a published number measured again, and whether it is what was published."""

import argparse
import math
import shlex
from pathlib import Path
from typing import Any

from vfmtok import distributed
from vfmtok.commands import evaluation_flags, flags
from vfmtok.commands.evaluation_scripts import measure_generator, measure_tokenizer
from vfmtok.errors import ConfigError, SharedError
from vfmtok.pretrained.manifest import Manifest, Variant, find_manifest, manifest_names

EDGE = 1e-9  # share of a band: decimal numbers are rounded to binary ones, so a difference of 0.1 may come out as more


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measure a published number and say whether it is what was published. The weights come from the cache or the "
        "Hub; the images (--data, of the tokenizer) or the reference (--ref-batch, of a generator) are yours to name. "
        "--list shows the names. With --num fewer images are measured, and nothing passes or fails. The run is "
        "vqgan_test.py's or test_net.py's: the same command again continues it, and torchrun shares the work."
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="of --list, or a manifest's YAML file")
    parser.add_argument("--list", action="store_true", help="list the published numbers that there are")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, and run nothing")
    parser.add_argument("--num", type=int, metavar="N", help="only so many images: a trial, not a comparison")
    parser.add_argument("--data", metavar="PATH", help="validation images: a prepared folder or an LMDB (tokenizer)")
    parser.add_argument("--ref-batch", metavar="PATH", help="ADM's npz, or another reference (generators)")
    text = "of the latents, where a generator of latents was published without them"
    parser.add_argument(*flags.names("--latent-stats"), metavar="FILE", help=text)
    flags.add_inception(parser)
    parser.add_argument(
        *flags.names("--results-dir"), default="results/reproduce", metavar="DIR", help="(default results/reproduce)"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="per process (default 32)")
    flags.add_set(parser, "tokenizer", "generator")
    parser.add_argument("--no-fid", action="store_true", help="without the Inception network; only with --num")


def run(args: argparse.Namespace) -> None:
    """Raises VFMTokError; SharedError where a number is not what was published."""
    if args.list:
        return print("\n".join(_listed()))
    if args.name is None:
        raise ConfigError("name what to reproduce, or ask --list")
    manifest = find_manifest(args.name)
    _check(args, manifest)
    script, arguments = script_arguments(manifest, args)
    distributed.print_main("\n".join(_described(manifest, script, arguments)))
    if args.dry_run:
        return None
    with distributed.group() as world:
        if manifest.task == "reconstruction":
            parsed = evaluation_flags.reconstruction_parser().parse_args(arguments)
            results = measure_tokenizer(parsed, world, args.num)
        else:
            results = _measure_samples(arguments, world)
        lines, failed = verdict(manifest, results, trial=args.num is not None)
        for variant in manifest.variants:
            found = _measure_samples(_varied(arguments, variant), world)
            lines += [f"  {variant.name}, which decides nothing:", *_beside(manifest, found)]
        distributed.print_main("\n".join(lines))
        if failed:
            raise SharedError(f"{manifest.title}: FAILED, {failed}")
    return None


def _measure_samples(arguments: list[str], world: distributed.World) -> dict[str, Any]:
    parsed = evaluation_flags.generation_parser().parse_args(arguments)
    (results,) = measure_generator(parsed, world).values()
    return results


def _varied(arguments: list[str], variant: Variant) -> list[str]:
    """A setting given twice has its last value, so the variant's go last."""
    return [*arguments, *(word for setting in variant.settings for word in ("--sampling", setting))]


def _beside(manifest: Manifest, results: dict[str, Any]) -> list[str]:
    """Lines for people, of the numbers that a manifest names."""
    found = _by_name(results)
    return [
        f"    {expected.name:<15} {entry['value']}, published {expected.value:g}"
        for expected in manifest.expected
        if (entry := found.get(expected.name)) is not None
    ]


def _by_name(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The numbers by their names, and without what is in brackets in these ("gFID (CFG 1.5)")."""
    numbers = results["numbers"]
    return {name.partition(" (")[0]: entry for name, entry in reversed(numbers.items())} | numbers


def _check(args: argparse.Namespace, manifest: Manifest) -> None:
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
    if manifest.latent_stats is not None and args.latent_stats is None and not args.dry_run:
        raise ConfigError(f"name --latent-stats: {manifest.latent_stats.strip()}")
    optional = args.dry_run or (manifest.task == "generation" and args.num is not None)
    if getattr(args, needed) is None and not optional:
        raise ConfigError(f"name --{needed.replace('_', '-')}: {manifest.reference}")


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
        lpips = any(number.name == "LPIPS" for number in manifest.expected)
        return "vqgan_test.py", [*common, *own, *([] if lpips else ["--no-lpips"])]
    own = ["--gpt-ckpt", manifest.gpt, "--sample-dir", folder]
    own += ["--gpt-model", manifest.gpt_model] if manifest.gpt_model else []
    own += ["--num-fid-samples", str(args.num or manifest.count), "--per-proc-batch-size", str(args.batch_size)]
    own += ["--latent-stats", args.latent_stats or "LATENT-STATS"] if manifest.latent_stats else []
    own += manifest.sampling.flags()
    reference = args.ref_batch or (None if args.num else "REF-BATCH")
    return "test_net.py", [*common, *own, *(["--ref-batch", reference] if reference else [])]


def verdict(manifest: Manifest, results: dict[str, Any], trial: bool = False) -> tuple[list[str], str | None]:
    """Lines for people, and what failed: None if all passed, or if a trial has too few images to compare anything.

    A number passes if it is within its band of the published one, on whichever side, edges included. One that came out
    infinite or as none is null in ``results``, and fails.
    """
    found = _by_name(results)
    count = results["job"]["count"]
    comparable = count == manifest.count
    lines, failed = [manifest.title + ":"], []
    for expected in manifest.expected:
        entry = found.get(expected.name)
        published = f"published {str(expected).partition(' ')[2]}"
        if entry is None:
            lines.append(f"  {expected.name:<15} was not measured, {published}")
            failed += [f"{expected.name} was not measured"] if expected.binding else []
            continue
        value = math.nan if entry["value"] is None else entry["value"]
        inside = abs(value - expected.value) <= expected.band * (1 + EDGE)  # false for nan
        said = ("passed" if inside else "FAILED") if comparable else "not comparable"
        if not expected.binding and comparable:
            said = f"{'inside' if inside else 'outside'}, of another run, decides nothing"
        lines.append(f"  {expected.name:<15} {value:.3f}, {published}: {said}")
        lines.append(f"  {'':<15} {entry['protocol']}")
        if not inside and expected.binding:
            failed.append(f"{expected.name} is {value:.3f}, {published}")
    if not comparable:
        of = f"{count:,} images instead of the published {manifest.count:,}"
        lines.append(f"  nothing is passed or failed: {of} give other numbers")
        return lines, None if trial else of
    lines.append(f"  bands: {manifest.band_reason.strip()}")
    lines += [f"  assumed: {text.strip()}" for text in manifest.assumptions]
    return [*lines, "  FAILED" if failed else "  PASSED"], "; ".join(failed) or None


def _described(manifest: Manifest, script: str, arguments: list[str]) -> list[str]:
    lines = [manifest.title, f"  from       {manifest.source.strip()}", f"  evaluator  {manifest.evaluator.strip()}"]
    lines += [f"  reference  {manifest.reference.strip()}", f"  images     {manifest.count:,}"]
    published = ", ".join(map(str, manifest.expected))
    lines.append(f"  published  {published}")
    lines += [f"  assumed    {text.strip()}" for text in manifest.assumptions]
    lines += [f"  beside it  {variant.name}: {' '.join(_varied([], variant))}" for variant in manifest.variants]
    return [*lines, f"  as         python {script} {shlex.join(arguments)}"]


def _listed() -> list[str]:
    names = manifest_names()
    width = max(map(len, names))
    lines = []
    for name in names:
        manifest = find_manifest(name)
        numbers = ", ".join(f"{number.name} {number.value:g}" for number in manifest.expected if number.binding)
        lines.append(f"{name:<{width}}  {manifest.title}: {numbers}")
    return lines
