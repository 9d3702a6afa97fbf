"""The diffusion family on golden data: outputs, losses, gradients and named sizes (see ``published_cases``)."""

import json
from pathlib import Path

import golden_rule
import pytest
import torch
from published_cases import FULL_SIZES, check_gradients, model_of, near, numbers, ours, sign

import vfmtok
from vfmtok.generators.diffusion.flow import training_times
from vfmtok.generators.diffusion.guidance import guided_velocity

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
