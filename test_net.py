"""Measure a generator: python test_net.py --help, or scripts/torchrun.sh test_net.py ... on several GPUs."""

from vfmtok import waiting


def main() -> None:
    waiting.choose("test_net.py")  # before PyTorch is loaded
    from vfmtok import distributed
    from vfmtok.commands import evaluation_flags as flags
    from vfmtok.commands.evaluation_scripts import measure_generator

    args = flags.generation_parser().parse_args()
    with distributed.program("test_net.py") as world:
        measure_generator(args, world)


if __name__ == "__main__":
    main()
