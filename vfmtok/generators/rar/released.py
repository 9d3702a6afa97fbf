"""The names of the RAR's tensors in the published files (see ``weights/name_maps.py``)."""

from collections.abc import Mapping

from torch import Tensor

from vfmtok.weights.name_maps import NameMap

SPARE_POSITIONS = 1024  # rows of the published tables of positions that no slot reads

RELEASED = NameMap(
    (
        ("cls_token", "cls_token"),
        ("positions", "pos_embed"),
        ("target_positions", "target_aware_pos_embed"),
        ("slot_conditions", "timesteps_embeddings"),
        ("embeddings", "embeddings"),
        ("blocks.*.attention_norm", "blocks.*.norm1"),
        ("blocks.*.attention", "blocks.*.attn"),
        ("blocks.*.mlp_norm", "blocks.*.norm2"),
        ("blocks.*.mlp", "blocks.*.mlp"),
        ("blocks.*.modulation", "blocks.*.adaLN_modulation.1"),
        ("head_modulation", "adaln_before_head.adaLN_modulation.1"),
        ("output", "lm_head"),
    )
)


def fields_of_released(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Fields of ``RARConfig`` that published tensors tell: all sizes but the number of heads.

    Two widths of RAR-XL's feed-forward layers were published, so a file's own counts.
    """
    ids, table = tensors.get("lm_head.weight"), tensors.get("embeddings.weight")
    positions, hidden = tensors.get("pos_embed"), tensors.get("blocks.0.mlp.fc1.weight")
    if ids is None or table is None or positions is None or hidden is None:
        return {}
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    return {
        "n_layer": len(blocks),
        "dim": ids.shape[1],
        "ffn_hidden": len(hidden),
        "vocab_size": len(ids),
        "num_tokens": positions.shape[1] - SPARE_POSITIONS,
        "num_classes": len(table) - len(ids) - 2,
    }
