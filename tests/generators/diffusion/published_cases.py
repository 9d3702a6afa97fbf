"""Models with the rule's weights and the golden data of LightningDiT's, REG's and DiT-DH's published code.

Their conventions are translated here: in LightningDiT time runs to data, and its output is data minus noise.
"""

from types import SimpleNamespace

import golden_rule
import pytest
import torch

import vfmtok
from vfmtok.weights.name_maps import rename

TINY = {"width": 48, "depth": 3, "heads": 4}
PLAIN = {"norm": "layer", "mlp": "gelu", "rope": False}
REG = {"in_channels": 4, "size": 8, "token_dim": 24, "align_depth": 2, "align_dims": [24], "align_hidden": 40, **TINY}
DH = {"in_channels": 8, "size": 4, "num_classes": 10, "depth": 2, "heads": 4, "head_width": 96, "head_heads": 4}
DDT = {**DH, "width": 64, "depth": 3}
TEN = {"num_classes": 10, **TINY}
CASES = {  # of a file of keys: the preset and its overrides
    "ldit_tiny": ("LightningDiT-B/1", {"in_channels": 8, "size": 6, **TEN}),
    "ldit_tiny_qk": ("LightningDiT-B/1", {"in_channels": 8, "size": 6, "qk_norm": True, **TEN}),
    "ldit_tiny_plain": ("LightningDiT-B/2", {"in_channels": 4, "size": 8, **PLAIN, **TEN}),
    "ldit_tiny_noshift": (
        "LightningDiT-B/2",
        {"in_channels": 4, "size": 8, "shift": False, "mlp": "gelu", "qk_norm": True, **TEN},
    ),
    "reg_tiny": ("REG-B/2", REG),
    "reg_tiny_qk": ("REG-B/2", {**REG, "qk_norm": True}),
    "dh_tiny": ("DiTDH-S", {**DH, "width": 48}),
    "dh_tiny_guide": ("DiTDH-S", {**DH, "width": 32}),
    "ddt_tiny": ("DiTDH-S", DDT),
    "ddt_guide": ("DiTDH-S", DDT),
}
FULL_SIZES = {
    "ldit_b1": ("LightningDiT-B/1", {}),
    "ldit_xl1": ("LightningDiT-XL/1", {"qk_norm": True}),
    "reg_b2": ("REG-B/2", {}),
    "reg_xl1": ("REG-XL/1", {"qk_norm": True}),
    "dh_s": ("DiTDH-S", {}),
    "dh_xl": ("DiTDH-XL", {}),
    "ddt_xl": ("DiTDH-XL", {}),
}


def keys_of(case: str) -> tuple[dict, list[str]]:
    """Names and shapes, and those of the fixed tables."""
    if case.startswith("ddt"):
        keys = golden_rule.shapes(f"rar/ddt_{'xl' if case == 'ddt_xl' else 'tiny'}_keys.json")
        return keys, [name for name in keys if "freqs" in name or name == "pos_embed"]
    found = golden_rule.shapes(
        f"diffusion/{case}_keys.json" if case in FULL_SIZES else f"diffusion/{family(case)}.json"
    )
    found = found if case in FULL_SIZES else found[case]
    return found["keys"], found["built"]


def family(case: str) -> str:
    return f"{case.split('_')[0]}_tiny_keys"


def model_of(case: str) -> vfmtok.DiT:
    """The model with the rule's weights, in eval mode; its fixed tables are its own."""
    preset, overrides = (CASES | FULL_SIZES)[case]
    keys, built = keys_of(case)
    weights = {
        name: golden_rule.tensor_for(f"{case}.{name}", shape) for name, shape in keys.items() if name not in built
    }
    if "t_embedder.W" in weights:
        weights["t_embedder.W"] *= 20
    dit = vfmtok.load_released(vfmtok.DiT(vfmtok.dit_config(preset, **overrides)), weights).eval()
    back = vfmtok.to_released(dit)
    assert {name: list(tensor.shape) for name, tensor in back.items()} == keys
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    return dit


def numbers(name: str) -> SimpleNamespace:
    """The arrays of a file; integers as labels are."""
    arrays = golden_rule.load(name)
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items() if array.dtype.kind in "fi"}
    tensors = {key: tensor if tensor.is_floating_point() else tensor.long() for key, tensor in tensors.items()}
    return SimpleNamespace(**tensors, raw=arrays)


def near(found: torch.Tensor, reference: torch.Tensor) -> bool:
    return found.shape == reference.shape and (found - reference).abs().max() < 1e-4 * reference.abs().max()


def ours(dit: vfmtok.DiT, t: torch.Tensor) -> torch.Tensor:
    """Noise levels of published times."""
    return 1 - t if dit.config.time_runs == "to_data" else t


def sign(dit: vfmtok.DiT) -> int:
    return -1 if dit.config.time_runs == "to_data" else 1


def check_gradients(dit: vfmtok.DiT, total: torch.Tensor, raw: dict, tolerance: float = 1e-3) -> None:
    total.backward()
    names = dit.released.pairs
    found = {rename(name, names): p.grad.norm().item() for name, p in dit.named_parameters() if p.grad is not None}
    norms = dict(zip(raw["grad_norm_names"].tolist(), raw["grad_norms"].tolist(), strict=True))
    assert found.keys() == norms.keys()
    largest = max(norms.values())
    for name, norm in norms.items():
        assert found[name] == pytest.approx(norm, rel=tolerance, abs=1e-5 * largest), name
