"""The names of a DiT's tensors in the files of three publications (see ``weights/name_maps.py``): LightningDiT, REG and
DiT-DH share them, as they share their code."""

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vfmtok.generators.diffusion.config import DiTConfig
from vfmtok.generators.diffusion.layers import sincos_columns_first
from vfmtok.layers.rotary import grid_rotary
from vfmtok.weights.name_maps import FixedTable, NameMap, Names

BLOCK: Names = (
    ("attention_norm", "norm1"),
    ("attention", "attn"),
    ("mlp_norm", "norm2"),
    ("mlp", "mlp"),
    ("modulation", "adaLN_modulation.1"),
)
COMMON: Names = (
    ("positions", "pos_embed"),
    ("time.frequencies", "t_embedder.W"),
    ("time.mlp", "t_embedder.mlp"),
    ("classes", "y_embedder.embedding_table"),
    *((f"blocks.*.{ours}", f"blocks.*.{theirs}") for ours, theirs in BLOCK),
    ("output.norm", "final_layer.norm_final"),
    ("output.modulation", "final_layer.adaLN_modulation.1"),
    ("output.linear", "final_layer.linear"),
    ("output.token", "final_layer.linear_cls"),
    ("token_input.linear", "cls_projectors2"),
    ("token_input.norm", "wg_norm"),
    ("alignment.*", "projectors.*"),
)


def released_names(config: DiTConfig) -> NameMap:
    """The published names of a DiT. Both fixed tables are computed here, so a file's are compared, then dropped.

    DiT-DH numbers the blocks through both stacks; its ``x_embedder`` is the head's. The statistics of latents were
    published in files of their own: ``to_released`` drops them, and a model that was loaded from such a file has none.
    """
    if config.head_width is None:
        pairs, ropes = (("patches", "x_embedder.proj"),), {"feat_rope": config.width // config.heads}
    else:
        pairs = (
            ("patches", "s_embedder.proj"),
            ("head.patches", "x_embedder.proj"),
            ("head.project", "s_projector"),
            *(
                (f"head.blocks.{index}.{ours}", f"blocks.{config.depth + index}.{theirs}")
                for index in range(config.head_depth)
                for ours, theirs in BLOCK
            ),
        )
        dims = (config.width // config.heads, config.head_width // config.head_heads)
        ropes = dict(zip(("enc_feat_rope", "dec_feat_rope"), dims, strict=True))
    cells, tokens = config.side**2, int(config.token_dim is not None)
    fixed = {"pos_embed": FixedTable((1, tokens + cells, config.width), lambda shape: positions_of(shape, tokens))}
    for name, dim in ropes.items() if config.rope else ():
        fixed[f"{name}.freqs_cos"] = FixedTable((cells, dim), lambda shape: _rope(shape)[0])
        fixed[f"{name}.freqs_sin"] = FixedTable((cells, dim), lambda shape: _rope(shape)[1])
    return NameMap((*pairs, *COMMON), left_out=("statistics",), fixed=fixed)


def positions_of(shape: tuple[int, ...], tokens: int) -> Tensor:
    """The fixed position table of a shape (1,tokens+N,D): rows of zeros in front for the class token."""
    table = sincos_columns_first(math.isqrt(shape[1]), shape[2])  # (N,D)
    return F.pad(table, (0, 0, tokens, 0))[None]


def _rope(shape: tuple[int, ...]) -> Tensor:
    """Cosines and (unsigned) sines of a shape (N,E): (2,N,E)."""
    table = grid_rotary(math.isqrt(shape[0]), shape[1])
    table[1, :, ::2] *= -1  # ours carry the sign of the rotation's first row
    return table


def fields_of_released(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of ``DiTConfig`` that published tensors tell, besides the sizes of the stacks."""
    patches, table = tensors.get("x_embedder.proj.weight"), tensors.get("y_embedder.embedding_table.weight")
    positions, token = tensors.get("pos_embed"), tensors.get("cls_projectors2.weight")
    if patches is None or table is None:
        return {}
    found: dict[str, Any] = {
        "in_channels": patches.shape[1],
        "patch": patches.shape[2],
        "num_classes": len(table) - 1,
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
    }
    if positions is not None:
        found["size"] = math.isqrt(positions.shape[1]) * patches.shape[2]  # a class token's row changes no root
    if token is not None:
        heads = sorted(name for name in tensors if name.startswith("projectors.") and name.endswith(".4.weight"))
        dims = [len(tensors[name]) for name in heads]
        found |= {"token_dim": token.shape[1], "align_dims": dims}
        if not dims:  # training alone needs them: some files of weights to sample from leave them out
            found["align_depth"] = None
        if "projectors.0.0.weight" in tensors:
            found["align_hidden"] = len(tensors["projectors.0.0.weight"])
    return found
