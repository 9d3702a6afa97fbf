"""`vfmtok download NAME [PART...]`: weights from the Hub into the cache or a folder, checked, continued after a cut.

Without a name, --list tells the published systems, their repositories and parts.
"""

import argparse
from pathlib import Path

from vfmtok.commands import flags
from vfmtok.errors import WeightsError
from vfmtok.pretrained.names import MODEL_FILE, download_part
from vfmtok.pretrained.published import PUBLISHED
from vfmtok.weights import reading
from vfmtok.weights.download import AbsentError, fetch, hub_access, sha256_stated


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fetch weights from the Hub into the cache or a folder, checked; after a cut the same command continues. NAME "
        "is a repository such as yexiguafu/VFMTok, PART one of its parts (default: tokenizer). What was fetched is "
        'found again by from_pretrained and by every command that takes NAME:PART, offline too. "encoder" is the '
        "published tokenizers' frozen encoder."
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="repository of the Hub: owner/name")
    parser.add_argument("parts", metavar="PART", nargs="*", help="tokenizer (default), encoder, GPT-B, ..., or gpt")
    parser.add_argument(
        "--list", action="store_true", help="only tell the parts of a published repository, or of all without NAME"
    )
    parser.add_argument("--to", metavar="FOLDER", help="put the files here, under their names, instead of the cache")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit (default main)")
    parser.add_argument("--sha256", metavar="HEX", help="what the file must have, besides what the Hub states")
    flags.add_hub(parser, "only check what is in the cache; HF_HUB_OFFLINE=1 too")


def run(args: argparse.Namespace) -> None:
    """Raises WeightsError."""
    if args.list:
        return _tell_parts([args.name] if args.name else list(PUBLISHED))
    if args.name is None:
        raise WeightsError("name a repository of the Hub, or ask --list for the published ones")
    parts = args.parts or ["tokenizer"]
    if args.sha256 and len(parts) > 1:
        raise WeightsError("--sha256 is of one file: name one part")
    with hub_access(args.cache_dir, args.offline or None, args.to):
        for part in parts:
            path = _fetch(args.name, part, args.revision, args.sha256)
            stated = sha256_stated(path)  # and checked: large files are not read once more
            digest, by = stated or reading.sha256(path), ", as the Hub states" if stated else ""
            print(f"{part}: {path}\n  {path.stat().st_size:,} bytes, SHA-256 {digest}{by}", flush=True)
    return None


def _fetch(name: str, part: str, revision: str | None, sha256: str | None) -> Path:
    if part == "encoder":
        if name not in PUBLISHED or PUBLISHED[name].encoder is None:
            known = ", ".join(name for name, repository in PUBLISHED.items() if repository.encoder)
            raise WeightsError(f"'encoder' is a part of {known} only: {name} does not say its own")
        return fetch(*PUBLISHED[name].encoder, sha256=sha256)
    try:
        path = download_part(name, part, revision, sha256)
    except AbsentError as error:
        known = f"; published are: {', '.join(PUBLISHED)}" if name not in PUBLISHED else ""
        raise WeightsError(f"{error}{known}") from None
    return path / MODEL_FILE if path.is_dir() else path


def _tell_parts(names: list[str]) -> None:
    """Raises WeightsError."""
    for name in names:
        if name not in PUBLISHED:
            raise WeightsError(f"{name} is none of the published repositories: {', '.join(PUBLISHED)}")
        repository = PUBLISHED[name]
        width = max(map(len, [*repository.parts, "encoder"]))
        print(f"{name}: {repository.system}")
        for part, published in repository.parts.items():
            facts = str(published.config.code)
            if published.section == "generator":
                facts = f"{published.size}, on {' '.join((published.tokenizer, *published.tokenizer_settings))}"
            pinned = published.sha256 or "as the Hub states, none is pinned"
            print(f"  {part:<{width}}  {published.file}  ({facts}; SHA-256 {pinned})")
        if repository.encoder:
            print(f"  {'encoder':<{width}}  {'/'.join(repository.encoder)}")
