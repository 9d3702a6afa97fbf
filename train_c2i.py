"""Train a generator: python train_c2i.py --help, or scripts/torchrun.sh train_c2i.py ... on several GPUs."""

from vfmtok import waiting


def main() -> None:
    waiting.choose("train_c2i.py")  # before PyTorch is loaded
    from vfmtok import distributed
    from vfmtok.commands import generator_flags
    from vfmtok.training.recipe import begun_at
    from vfmtok.training.train_generator import train_generator

    args = generator_flags.generator_parser().parse_args()
    with distributed.program("train_c2i.py") as world:
        with distributed.together():
            recipe = generator_flags.generator_recipe(args)
        train_generator(begun_at(recipe, args.gpt_ckpt, args.finetune), world, size=args.gpt_model)


if __name__ == "__main__":
    main()
