"""Times and sampling of the diffusion family on golden data of the published code (see ``published_cases``)."""

import pytest
import torch
from published_cases import model_of, near, numbers

import vfmtok
from vfmtok.generators.diffusion.flow import shift_times, training_times
from vfmtok.generators.diffusion.guidance import guided_velocity
from vfmtok.generators.diffusion.sampling import given_noises, integrate, time_grid


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
