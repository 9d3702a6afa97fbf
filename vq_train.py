"""Train a tokenizer: python vq_train.py --help, or scripts/torchrun.sh vq_train.py ... on several GPUs."""

from vfmtok import waiting


def main() -> None:
    waiting.choose("vq_train.py")  # before PyTorch is loaded
    from vfmtok import distributed
    from vfmtok.commands import tokenizer_flags as flags
    from vfmtok.training.recipe import begun_at
    from vfmtok.training.train_tokenizer import train_tokenizer

    args = flags.tokenizer_parser().parse_args()
    with distributed.program("vq_train.py") as world:
        with distributed.together():
            recipe = flags.tokenizer_recipe(args)
        train_tokenizer(begun_at(recipe, args.vq_ckpt, args.finetune), world)


if __name__ == "__main__":
    main()
