"""The names of the GPT's tensors in the published files (see ``weights/name_maps.py``)."""

from collections.abc import Mapping

from torch import Tensor

from vfmtok.weights.name_maps import NameMap, Names

GPT_NAMES: Names = (
    ("class_embedding", "cls_embedding.embedding_table"),
    ("token_embedding", "tok_embeddings"),
    ("layers.*.attention_norm", "layers.*.attention_norm"),
    ("layers.*.attention.wqkv", "layers.*.attention.wqkv"),
    ("layers.*.attention.wo", "layers.*.attention.wo"),
    ("layers.*.ffn_norm", "layers.*.ffn_norm"),
    ("layers.*.feed_forward", "layers.*.feed_forward"),
    ("norm", "norm"),
    ("output", "output"),
    ("holistic_embedding", "slot_embeddings"),  # Hita's
    ("holistic_positions", "slot_pos"),
)

RELEASED = NameMap(GPT_NAMES, computed=("freqs_cis",))  # the rotary table


def fields_of_released(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Fields of ``GPTConfig`` that published tensors tell: how many codes, classes and holistic tokens there are."""
    ids, classes = tensors.get("tok_embeddings.weight"), tensors.get("cls_embedding.embedding_table.weight")
    if ids is None or classes is None:
        return {}
    holistic = tensors.get("slot_pos.weight")
    count = {} if holistic is None else {"num_holistic": len(holistic)}
    return {"vocab_size": len(ids), "num_classes": len(classes) - 1} | count
