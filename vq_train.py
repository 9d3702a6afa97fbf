"""Train a tokenizer: python vq_train.py --help, or scripts/torchrun.sh vq_train.py ... on several GPUs."""

from vfmtok import distributed
from vfmtok.commands import tokenizer_flags as flags
from vfmtok.commands.flags import path_of
from vfmtok.training.train_tokenizer import train_tokenizer


def main() -> None:
    args = flags.tokenizer_parser().parse_args()
    with distributed.program("vq_train.py") as world:
        with distributed.together():
            recipe = flags.tokenizer_recipe(args)
        if args.codebook_embed_dim is not None:
            distributed.print_main("--codebook-embed-dim is without effect: VFMTok has no patch codebook")
        weights = path_of(args.vq_ckpt)
        train_tokenizer(
            recipe,
            world,
            start_from=None if args.finetune else weights,
            finetune_from=weights if args.finetune else None,
        )


if __name__ == "__main__":
    main()
