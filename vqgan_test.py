"""Measure a tokenizer: python vqgan_test.py --help, or scripts/torchrun.sh vqgan_test.py ... on several GPUs."""

from pathlib import Path

from vfmtok import distributed
from vfmtok.evaluation import flags
from vfmtok.evaluation.reconstruction import evaluate_reconstruction
from vfmtok.evaluation.report import as_lines


def main() -> None:
    args = flags.reconstruction_parser().parse_args()
    folder = Path(args.output_dir).expanduser()
    with distributed.program("vqgan_test.py") as world:
        with distributed.together():
            records, tokenizer = flags.open_records(args.anno_file), flags.open_tokenizer(args, world)
            probe = flags.open_probe(args, records)
        results = evaluate_reconstruction(
            tokenizer,
            records,
            folder,
            world,
            flags.open_measures(args, world, probe),
            size=args.image_size_eval,
            batch=args.batch_size,
            num_workers=args.num_workers,
            shown_tokens=args.tokens,
        )
        title = f"{args.vq_ckpt} on {records.path} ({len(records):,} images): {folder}"
        distributed.print_main("\n".join(as_lines(title, results)))


if __name__ == "__main__":
    main()
