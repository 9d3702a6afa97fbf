"""The diffusion family on golden data of LightningDiT's, REG's and DiT-DH's published code.

Their conventions are translated here: in LightningDiT time runs to data, and its output is data minus noise.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import golden_rule
import pytest
import torch

import vfmtok
from vfmtok.generators.diffusion.flow import shift_times, training_times
from vfmtok.generators.diffusion.guidance import guided_velocity
from vfmtok.generators.diffusion.sampling import given_noises, integrate, time_grid
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


# ---- outputs, losses, gradients ------------------------------------------------------------


@pytest.mark.parametrize("case", ["ldit_tiny", "ldit_tiny_qk", "ldit_tiny_plain", "ldit_tiny_noshift"])
def test_lightningdit(case):
    dit, data = model_of(case), numbers(f"diffusion/{case}.npz")
    assert near(-dit(data.x, 1 - data.t, data.y).velocity, data.out)
    if case == "ldit_tiny_noshift":
        return
    loss = vfmtok.flow_loss(dit, data.latents, data.y, 1 - data.t_loss, data.noise)
    assert near(loss.mse, data.loss_mse) and near(loss.cosine, data.loss_cos)
    assert near(loss.total, data.loss_mse + data.loss_cos)
    check_gradients(dit, loss.total.mean(), data.raw)


@pytest.mark.parametrize("case", ["reg_tiny", "reg_tiny_qk"])
def test_reg(case):
    dit, data = model_of(case), numbers(f"diffusion/{case}.npz")
    out = dit(data.x, data.t, data.y, data.cls_x, align=True)
    assert near(out.velocity, data.out) and near(out.token_velocity, data.cls_out)
    assert len(out.alignment) == 1 and near(out.alignment[0], data.align_out)
    flow = (data.latents, data.y, data.t_loss, data.noise)
    loss = vfmtok.flow_loss(dit, *flow, token=data.cls, token_noise=data.noise_cls, targets=data.target)
    assert near(loss.mse, data.loss_mse) and near(loss.token, data.loss_cls)
    assert near(loss.align.mean(), data.loss_align) and near(loss.total.mean(), data.loss_total)
    check_gradients(dit, loss.total.mean(), data.raw)


def test_dit_dh():
    dit, data = model_of("dh_tiny"), numbers("diffusion/dh_tiny.npz")
    assert near(dit(data.x, data.t, data.y).velocity, data.out)
    assert near(model_of("dh_tiny_guide")(data.x, data.t, data.y).velocity, data.guide_out)
    loss = vfmtok.flow_loss(dit, data.latents, data.y, data.t_loss, data.noise)
    assert near(loss.total, data.loss_mse)
    check_gradients(dit, loss.total.mean(), data.raw)


def test_dit_dh_of_vfmtok2():
    dit, weaker, data = model_of("ddt_tiny"), model_of("ddt_guide"), numbers("rar/ddt_tiny.npz")
    assert near(dit(data.x, data.t, data.y).velocity, data.velocity)
    assert near(dit.positions.detach(), data.pos_embed)
    released = vfmtok.to_released(dit)
    assert near(released["enc_feat_rope.freqs_cos"], data.rope_cos_enc)
    assert near(released["dec_feat_rope.freqs_cos"], data.rope_cos_dec)
    guided = {
        "cfg_2_all": vfmtok.FlowGuidance(2.0),
        "cfg_2_interval": vfmtok.FlowGuidance(2.0, 0.1, 0.9),
        "autoguidance_1.37": vfmtok.FlowGuidance(1.37, weaker=weaker),
    }
    for name, guidance in guided.items():
        rows = [
            guided_velocity(dit, data.x[row : row + 1], data.t[row].item(), data.y[row : row + 1], guidance)[0]
            for row in range(3)
        ]
        assert near(torch.cat(rows), torch.from_numpy(data.raw[name])), name
    t = training_times(data.u, dit.config)
    assert near(t, data.t_shifted)
    loss = vfmtok.flow_loss(dit, data.x1, data.train_labels, t, data.x0)
    assert near(loss.total, data.train_loss_per_sample)
    check_gradients(dit, loss.total.mean(), data.raw)


# ---- times and sampling --------------------------------------------------------------------


def test_times():
    data = numbers("diffusion/ldit_tiny.npz")
    assert near(1 - torch.tensor(time_grid("euler", 7, 1 / 0.3)), data.times_8_shift03)
    data = numbers("diffusion/dh_tiny.npz")
    assert near(torch.tensor(time_grid("euler", 7, 4, 0.001)), data.times_8_shift4)
    uniform = vfmtok.dit_config("DiTDH-S", times="uniform", time_shift=4.0)
    assert near(training_times(data.time_uniforms, uniform), data.times_uniform)
    logit_normal = vfmtok.dit_config("DiTDH-S", times="logit-normal", time_shift=4.0)
    assert near(training_times(data.time_uniforms, logit_normal), data.times_logit_normal)
    data = numbers("rar/ddt_tiny.npz")
    for points in (10, 50, 100):
        assert near(
            torch.tensor(time_grid("euler", points - 1, 4, 0.001)), torch.from_numpy(data.raw[f"grid_{points}"])
        )


def test_training_times_are_the_distribution_they_are_called():
    uniform = (torch.arange(200_000) + 0.5) / 200_000
    t = training_times(uniform, vfmtok.dit_config("LightningDiT-B/1"))
    normal = torch.logit(t.double())
    assert normal.mean().abs() < 1e-3 and normal.std() == pytest.approx(1, abs=1e-3)
    late = vfmtok.dit_config("LightningDiT-B/1", uniform_from_step=100)
    assert torch.equal(training_times(uniform, late, 99), t) and torch.equal(
        training_times(uniform, late, 100), uniform
    )
    assert near(shift_times(shift_times(uniform, 5.0), 0.2), uniform)


CFG3 = {"scale": 6.7, "high": 1 - 0.11, "channels": 3}


@pytest.mark.parametrize(
    ("name", "method", "steps", "shift", "guidance"),
    [
        ("euler8", "euler", 7, 1.0, {}),
        ("euler8_shift", "euler", 7, 1 / 0.3, {}),
        ("euler8_shift_cfg3", "euler", 7, 1 / 0.3, CFG3),
        ("euler8_shift_cfgall", "euler", 7, 1 / 0.3, {"scale": 2.0, "high": 1 - 0.11}),
        ("heun6_shift_cfg3", "heun", 5, 1 / 0.3, CFG3),
        ("sde6", "sde", 6, 1.0, {}),
        ("sde6_cfg3", "sde", 6, 1.0, CFG3),
    ],
)
def test_sampling_of_lightningdit(name, method, steps, shift, guidance):
    dit, data = model_of("ldit_tiny"), numbers("diffusion/ldit_tiny.npz")
    noises = [data.z, *(data.sde_noise if method == "sde" else [])]
    guidance = vfmtok.FlowGuidance(**guidance)
    latents = vfmtok.generate_latents(
        dit, data.y_sample, method=method, steps=steps, shift=shift, guidance=guidance, noises=noises
    )
    assert near(latents, torch.from_numpy(data.raw[name]))


def test_interval_of_guidance():
    dit, data = model_of("ldit_tiny"), numbers("diffusion/ldit_tiny.npz")
    for name, t in (("cfg3_before", 0.05), ("cfg3_after", 0.6)):
        velocity, _ = guided_velocity(dit, data.z, 1 - t, data.y_sample, vfmtok.FlowGuidance(**CFG3))
        assert near(-velocity, torch.from_numpy(data.raw[name])), name


REG_CFG = {"scale": 2.3, "token_scale": 1.7, "high": 0.85}


@pytest.mark.parametrize(
    ("name", "method", "steps", "guidance"),
    [
        ("sde6", "sde", 6, {}),
        ("sde6_cfg", "sde", 6, REG_CFG),
        ("sde6_cfg_low", "sde", 6, {"scale": 2.3, "token_scale": 0.0, "low": 0.3, "high": 0.85}),
        ("ode_euler6", "euler", 6, {}),
        ("ode_euler6_cfg", "euler", 6, REG_CFG),
        ("ode_heun5_cfg", "heun", 5, REG_CFG),
    ],
)
def test_sampling_of_reg(name, method, steps, guidance):
    dit, data = model_of("reg_tiny"), numbers("diffusion/reg_tiny.npz")
    noises = [(data.z, data.cls_z)]
    if method == "sde":
        noises += list(zip(data.sde_noise, data.sde_noise_cls, strict=True))
    guidance, times = vfmtok.FlowGuidance(**guidance), time_grid(method, steps)
    latents = vfmtok.generate_latents(dit, data.y_sample, method=method, steps=steps, guidance=guidance, noises=noises)
    assert near(latents, torch.from_numpy(data.raw[name]))
    if method != "sde":
        _, token = integrate(dit, data.y_sample, method, times, guidance, given_noises(dit, noises))
        assert near(token.float(), torch.from_numpy(data.raw[f"{name}_cls"]))
        return
    flat = [torch.cat([part.flatten(1) for part in pair], dim=1) for pair in noises]  # the other form of noises
    _, token = integrate(dit, data.y_sample, "sde", times[:-1], guidance, given_noises(dit, flat))
    assert near(token.float(), torch.from_numpy(data.raw[f"{name}_cls_before_last"]))


@pytest.mark.parametrize(
    ("name", "guidance"),
    [("", {}), ("_cfg", {"scale": 2.0, "low": 0.1, "high": 0.9}), ("_auto", {"scale": 1.42})],
)
def test_sampling_of_dit_dh(name, guidance):
    dit, data = model_of("dh_tiny"), numbers("diffusion/dh_tiny.npz")
    weaker = model_of("dh_tiny_guide") if name == "_auto" else None
    settings = {"method": "euler", "steps": 7, "shift": 4.0, "last": 0.001, "noises": data.z}
    latents = vfmtok.generate_latents(
        dit, data.y_sample, guidance=vfmtok.FlowGuidance(**guidance, weaker=weaker), **settings
    )
    assert near(latents, torch.from_numpy(data.raw[f"euler8_shift{name}"]))


@pytest.mark.parametrize(("name", "weaker"), [("sample_euler10", None), ("sample_euler10_ag", "ddt_guide")])
def test_sampling_of_vfmtok2(name, weaker):
    dit, data = model_of("ddt_tiny"), numbers("rar/ddt_tiny.npz")
    guidance = vfmtok.FlowGuidance(1.37, weaker=model_of(weaker)) if weaker else vfmtok.FlowGuidance()
    settings = {"method": "euler", "steps": 9, "shift": 4.0, "last": 0.001, "noises": data.z}
    latents = vfmtok.generate_latents(dit, data.z_labels, guidance=guidance, **settings)
    assert near(latents, torch.from_numpy(data.raw[name]))


# ---- named sizes ---------------------------------------------------------------------------


def test_parameter_counts():
    sizes = json.loads((golden_rule.GOLDEN / "diffusion/diffusion_sizes.json").read_text())["sizes"]
    assert len(sizes) > 15
    for name, size in sizes.items():
        preset = name.split()[0]
        for qk_norm, key in ((False, "parameters"), (True, "parameters_qk_norm")):
            if key not in size:
                continue
            shape = {"in_channels": size["in_channels"], "size": size["size"], "qk_norm": qk_norm}
            with torch.device("meta"):
                dit = vfmtok.DiT(vfmtok.dit_config(preset, **shape))
            assert sum(p.numel() for p in dit.parameters()) == size[key], name
            if not qk_norm:
                learned = sum(p.numel() for p in dit.parameters() if p.requires_grad)
                assert learned == size["learned"], name


def available_memory() -> int:
    """Bytes; none where the system does not say."""
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL_SIZES)
def test_full_size(case):
    if case.split("_")[1].startswith("xl") and available_memory() < 8 * 2**30:
        pytest.skip("needs 8 GiB of memory")
    folder = "rar" if case == "ddt_xl" else "diffusion"
    dit, data = model_of(case), numbers(f"{folder}/{case}.npz")
    config, y = dit.config, data.y

    def given(name: str, *shape: int) -> torch.Tensor:
        """Standard normals by the rule, from the input's name."""
        return 2 * golden_rule.tensor_for(f"{case}.{name}", (1, 2, *(shape or config.code.shape)))[0]

    with torch.no_grad():
        if case == "ddt_xl":
            assert near(dit(data.x, data.t, y).velocity[:, ::4, ::3, ::3], data.velocity_slice)
            return
        token = {} if config.token_dim is None else {"token": given("cls_x", 768), "align": True}
        out = dit(given("x"), ours(dit, data.t), y, **token)
        found = sign(dit) * out.velocity
        assert near(found[:, ::3, ::2, ::2], data.out_slice)
        assert found.mean().item() == pytest.approx(float(data.raw["out_mean"]), abs=1e-4)
        assert found.std().item() == pytest.approx(float(data.raw["out_std"]), rel=1e-4)
        aligned = {}
        if token:
            assert near(out.token_velocity[:, ::5], data.cls_out_slice)
            assert near(out.alignment[0][:, ::16, ::16], data.align_out_slice)
            aligned = {"token": given("cls", 768), "token_noise": given("noise_cls", 768)}
            aligned["targets"] = given("target", config.side**2 + 1, 768)
        loss = vfmtok.flow_loss(dit, given("latents"), y, ours(dit, data.t_loss), given("noise"), **aligned)
        assert near(loss.mse, data.loss_mse)
        if hasattr(data, "loss_cos"):
            assert near(loss.cosine, data.loss_cos)
        if aligned:
            assert near(loss.token, data.loss_cls) and near(loss.align.mean(), data.loss_align)
