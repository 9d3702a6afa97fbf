"""The names of the RAR's tensors in the published files (see ``weights/name_maps.py``)."""

from vfmtok.weights.name_maps import NameMap

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
