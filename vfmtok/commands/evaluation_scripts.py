"""What vqgan_test.py and test_net.py do with their arguments; `vfmtok reproduce` has such arguments too."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from vfmtok import distributed
from vfmtok.commands import evaluation_flags as flags
from vfmtok.commands import measuring_networks
from vfmtok.data.records import Record, RecordDataset
from vfmtok.evaluation.generation import evaluate_generator
from vfmtok.evaluation.reconstruction import evaluate_reconstruction
from vfmtok.evaluation.results import as_lines
from vfmtok.evaluation.sweep import parse_scales, run_sweep
from vfmtok.pictures.sampling_points import parse_tokens


def measure_tokenizer(args: argparse.Namespace, world: distributed.World, count: int | None = None) -> dict[str, Any]:
    """Measure and print; ``args`` are those of ``flags.reconstruction_parser``. Every process must call it.

    Args:
        count: of records, spread evenly over the dataset; None takes all.

    Returns:
        the content of results.json.

    Raises:
        VFMTokError.
    """
    folder = Path(args.output_dir).expanduser()
    with distributed.together():
        records, tokenizer = flags.open_records(args.anno_file), flags.open_tokenizer(args, world)
        probe, tokens = measuring_networks.open_probe(args), parse_tokens(args.tokens)
    if count is not None and count < len(records):
        records = EvenRecords(records, count)
    results = evaluate_reconstruction(
        tokenizer,
        records,
        folder,
        world,
        measuring_networks.open_measures(args, world, probe),
        size=args.image_size_eval,
        batch=args.batch_size,
        num_workers=args.num_workers,
        shown_tokens=tokens,
    )
    title = f"{args.vq_ckpt} on {records.path} ({len(records):,} images): {folder}"
    distributed.print_main("\n".join(as_lines(title, results)))
    return results


def measure_generator(args: argparse.Namespace, world: distributed.World) -> dict[float, dict[str, Any]]:
    """Sample, measure and print; ``args`` are those of ``flags.generation_parser``. Every process must call it.

    Returns:
        guidance scale -> the content of its results.json.

    Raises:
        VFMTokError.
    """
    with distributed.together():
        scales = parse_scales(args.cfg_scale) if args.cfg_scale is not None else None
        tokenizer = flags.open_tokenizer(args, world, encodes=False)
        generator, name, classes = flags.open_gpt(args, tokenizer, world)
        samples = flags.samples_of(args, generator)
        class_names = classes or flags.class_names(args.reference)
    inception, references = measuring_networks.open_references(args, samples.size, world)

    def evaluate(setting, folder):
        return evaluate_generator(
            generator,
            tokenizer,
            setting,
            folder,
            world,
            inception=inception,
            references=references,
            batch=args.per_proc_batch_size,
            compile=args.compile,
            class_names=class_names,
        )

    return run_sweep(
        evaluate, samples, scales or [samples.sampling.cfg_scale], Path(args.sample_dir).expanduser(), name, world
    )


class EvenRecords:
    """``count`` records of a dataset, spread evenly over it: of a dataset sorted by class, of all classes."""

    def __init__(self, records: RecordDataset, count: int):
        self._records, self._count = records, count
        self.path, self.metadata, self.classes = records.path, records.metadata, records.classes
        self.fingerprint = hashlib.sha256(f"{records.fingerprint} {count} evenly".encode()).hexdigest()
        self.class_name = records.class_name

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self._count:
            raise IndexError(f"record {index} of {self._count}")
        return self._records[index * len(self._records) // self._count]
