"""Measure a generator: python test_net.py --help, or scripts/torchrun.sh test_net.py ... on several GPUs."""

from pathlib import Path

from vfmtok import distributed
from vfmtok.evaluation import flags
from vfmtok.evaluation.generation import evaluate_generator
from vfmtok.evaluation.sweep import parse_scales, run_sweep


def main() -> None:
    args = flags.generation_parser().parse_args()
    with distributed.program("test_net.py") as world:
        with distributed.together():
            scales, samples = parse_scales(args.cfg_scale), flags.samples_of(args)
            tokenizer = flags.open_tokenizer(args, world)
            gpt, name, classes = flags.open_gpt(args, tokenizer, world)
            class_names = classes or flags.class_names(args.reference)
        inception, references = flags.open_references(args, samples.size, world)

        def evaluate(setting, folder):
            return evaluate_generator(
                gpt,
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

        run_sweep(evaluate, samples, scales, Path(args.sample_dir).expanduser(), name, world)


if __name__ == "__main__":
    main()
