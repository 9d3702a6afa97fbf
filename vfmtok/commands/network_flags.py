"""The flags of the Inception network. Help needs neither the network nor PyTorch, so they stand apart from it."""

import argparse


def add_inception(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--inception",
        metavar="PATH",
        help="Inception weights (default: $VFMTOK_INCEPTION, torch hub's cache, or downloaded)",
    )


def add_spatial_tap(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, default: str | None = "convolution"
) -> None:
    """``default`` None tells a flag that was not given."""
    parser.add_argument(
        "--spatial-tap",
        choices=("convolution", "activation"),  # inception.SpatialTap
        default=default,
        help="where sFID's features are read, as for the reference: before (default) or after batch norm and ReLU",
    )
