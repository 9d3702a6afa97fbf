"""Measure a tokenizer: python vqgan_test.py --help, or scripts/torchrun.sh vqgan_test.py ... on several GPUs."""

from vfmtok import waiting


def main() -> None:
    waiting.choose("vqgan_test.py")  # before PyTorch is loaded
    from vfmtok import distributed
    from vfmtok.commands import evaluation_flags as flags
    from vfmtok.commands.evaluation_scripts import measure_tokenizer

    args = flags.reconstruction_parser().parse_args()
    with distributed.program("vqgan_test.py") as world:
        measure_tokenizer(args, world)


if __name__ == "__main__":
    main()
