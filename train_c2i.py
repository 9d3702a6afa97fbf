"""Train a generator: python train_c2i.py --help, or scripts/torchrun.sh train_c2i.py ... on several GPUs."""

from vfmtok import distributed
from vfmtok.commands import generator_flags
from vfmtok.commands.flags import path_of
from vfmtok.training.train_generator import train_gpt


def main() -> None:
    args = generator_flags.generator_parser().parse_args()
    with distributed.program("train_c2i.py") as world:
        with distributed.together():
            recipe = generator_flags.generator_recipe(args)
        weights = path_of(args.gpt_ckpt)
        train_gpt(
            recipe,
            world,
            start_from=None if args.finetune else weights,
            finetune_from=weights if args.finetune else None,
            size=args.gpt_model,
        )


if __name__ == "__main__":
    main()
