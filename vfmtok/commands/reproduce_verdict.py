"""What `vfmtok reproduce` tells people: the published numbers, what is about to be measured, and the verdict."""

import math
import shlex
from typing import Any

from vfmtok.pretrained.manifest import Manifest, find_manifest, manifest_names

EDGE = 1e-9  # share of a band: decimal numbers are rounded to binary ones, so a difference of 0.1 may come out as more


def verdict(manifest: Manifest, results: dict[str, Any], trial: bool = False) -> tuple[list[str], str | None]:
    """Lines for people, and what failed: None if all passed, or if a trial has too few images to compare anything.

    A number passes if it is within its band of the published one, on whichever side, edges included. One that came out
    infinite or as none is null in ``results``, and fails. All that decide must pass.
    """
    found = _by_name(results)
    count = results["job"]["count"]
    comparable = count == manifest.count
    lines, failed = [manifest.title + ":"], []
    for expected in manifest.expected:
        entry = found.get(expected.name)
        published = f"published {expected.published}"
        decides = "" if expected.binding else ", decides nothing"
        if entry is None:
            lines.append(f"  {expected.name:<15} was not measured, {published}{decides}")
            failed += [f"{expected.name} was not measured"] if expected.binding else []
            continue
        value = math.nan if entry["value"] is None else entry["value"]
        inside = abs(value - expected.value) <= expected.band * (1 + EDGE)  # false for nan
        said = ("passed" if inside else "FAILED") if expected.binding else ("inside" if inside else "outside")
        lines.append(
            f"  {expected.name:<15} {value:.3f}, {published}: {said if comparable else 'not comparable'}{decides}"
        )
        lines.append(f"  {'':<15} {entry['protocol']}")
        if not inside and expected.binding:
            failed.append(f"{expected.name} is {value:.3f}, {published}")
    if not comparable:
        of = f"{count:,} images instead of the published {manifest.count:,}"
        lines.append(f"  nothing is passed or failed: {of} give other numbers")
        return lines, None if trial else of
    lines += [f"  assumed: {text.strip()}" for text in manifest.assumptions]
    return [*lines, _summed_up(manifest, len(failed))], "; ".join(failed) or None


def _summed_up(manifest: Manifest, failed: int) -> str:
    deciding, said = len(manifest.deciding), "FAILED" if failed else "PASSED"
    return f"  {said}: {deciding - failed} of the {deciding} deciding numbers lie within their bands"


def beside(manifest: Manifest, results: dict[str, Any]) -> list[str]:
    """Lines for people, of the numbers that a manifest names."""
    found = _by_name(results)
    return [
        f"    {expected.name:<15} {entry['value']}, published {expected.value:g}"
        for expected in manifest.expected
        if (entry := found.get(expected.name)) is not None
    ]


def described(manifest: Manifest, script: str, arguments: list[str], variants: list[list[str]]) -> list[str]:
    """Lines for people, of what is about to be measured.

    Args:
        variants: for each of the manifest's, the arguments that it adds.
    """
    lines = [manifest.title, f"  from       {manifest.source.strip()}", f"  evaluator  {manifest.evaluator.strip()}"]
    lines += [f"  reference  {manifest.reference.strip()}", f"  images     {manifest.count:,}"]
    taken = {"ema": "average (EMA)", "model": "last ones"}[manifest.prefer]
    lines.append(f"  weights    the {taken}, where a file holds the average and the last ones")
    lines.append(f"  must pass  {', '.join(map(str, manifest.deciding))}")
    if shown := ", ".join(map(str, manifest.shown)):
        lines.append(f"  shown only {shown}: {'decides' if len(manifest.shown) == 1 else 'decide'} nothing")
    if any(number.paper is not None for number in manifest.expected):
        lines.append("  (paper X)  what a paper prints instead (see 'from'): X is shown and decides nothing")
    lines.append(f"  bands      {manifest.band_reason.strip()}")
    lines += [f"  assumed    {text.strip()}" for text in manifest.assumptions]
    named = zip(manifest.variants, variants, strict=True)
    lines += [f"  beside it  {variant.name}, decides nothing: {' '.join(words)}" for variant, words in named]
    return [*lines, f"  as         python {script} {shlex.join(arguments)}"]


def listed() -> list[str]:
    """A line for every published manifest, with all its numbers."""
    names = manifest_names()
    width = max(map(len, names))
    lines = []
    for name in names:
        manifest = find_manifest(name)
        deciding, shown = (
            ", ".join(f"{number.name} {number.value:g}" for number in part)
            for part in (manifest.deciding, manifest.shown)
        )
        lines.append(f"{name:<{width}}  {manifest.title}: {deciding}{f'; shown only: {shown}' if shown else ''}")
    return lines


def _by_name(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The numbers by their names, and without what is in brackets in these ("gFID (CFG 1.5)")."""
    numbers = results["numbers"]
    return {name.partition(" (")[0]: entry for name, entry in reversed(numbers.items())} | numbers
