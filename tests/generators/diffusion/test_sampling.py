"""Sampling beside closed forms, its random numbers, and what it refuses."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import vfmtok
from vfmtok.generators.counter_random import normals
from vfmtok.generators.diffusion.network import DiTOutput
from vfmtok.generators.diffusion.sampling import time_grid

TINY = {"in_channels": 2, "size": 4, "width": 16, "depth": 2, "heads": 2, "num_classes": 3}


def tiny_dit(preset: str = "LightningDiT-B/1", **overrides) -> vfmtok.DiT:
    """With weights that are no longer those of a new network, whose velocity is 0."""
    torch.manual_seed(0)
    dit = vfmtok.DiT(vfmtok.dit_config(preset, **{**TINY, **overrides})).eval()
    with torch.no_grad():
        for parameter in dit.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.2)
    return dit


class Gaussian(vfmtok.DiT):
    """The exact velocity field of data that are N(mean, deviation^2) in every element."""

    mean, deviation = 0.7, 0.4

    def forward(self, x, t, labels, token=None, align=False):
        t = t[:, None, None, None]
        variance = ((1 - t) * self.deviation) ** 2 + t**2
        excess = (x - (1 - t) * self.mean) / variance  # E[noise] = t * excess, E[data] = mean + (1-t) dev^2 excess
        return DiTOutput(t * excess - self.mean - (1 - t) * self.deviation**2 * excess)


def gaussian(**overrides) -> Gaussian:
    return Gaussian(vfmtok.dit_config("LightningDiT-B/1", **{**TINY, **overrides})).double()


@pytest.mark.parametrize(("method", "steps", "error"), [("euler", 400, 1e-2), ("heun", 60, 1e-3)])
def test_the_straight_path_ends_where_the_flow_of_a_gaussian_does(method, steps, error):
    """Its ODE keeps every element's distance to the mean in standard deviations: x(0) = mean + deviation * x(1)."""
    dit, noise = gaussian(), torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    latents = vfmtok.generate_latents(dit, torch.zeros(5, dtype=torch.int64), method, steps, noises=noise)
    assert (latents - (dit.mean + dit.deviation * noise)).abs().max() < error
    fewer = vfmtok.generate_latents(dit, torch.zeros(5, dtype=torch.int64), method, steps // 2, noises=noise)
    worse = (fewer - (dit.mean + dit.deviation * noise)).abs().max()
    order = math.log2(worse / (latents - (dit.mean + dit.deviation * noise)).abs().max())
    assert order == pytest.approx(1 if method == "euler" else 2, abs=0.35)


def test_the_sde_s_last_distribution_has_the_data_s_moments():
    dit, count = gaussian(size=12), 40
    latents = vfmtok.generate_latents(dit, torch.zeros(count, dtype=torch.int64), "sde", 120, seed=3)
    assert latents.mean().item() == pytest.approx(dit.mean, abs=5 * dit.deviation / latents.numel() ** 0.5)
    assert latents.std().item() == pytest.approx(dit.deviation, rel=0.03)
    other = vfmtok.generate_latents(dit, torch.zeros(count, dtype=torch.int64), "sde", 120, seed=4)
    assert abs(torch.corrcoef(torch.stack([latents.flatten(), other.flatten()]))[0, 1]) < 5 / latents.numel() ** 0.5


@pytest.mark.parametrize(
    ("method", "preset", "overrides"),
    [
        ("euler", "LightningDiT-B/1", {}),
        ("heun", "DiTDH-S", {"head_width": 24, "head_heads": 2}),
        ("sde", "REG-XL/1", {"token_dim": 5, "align_depth": 1, "align_dims": [5], "align_hidden": 8}),
    ],
)
def test_a_sample_is_the_same_in_any_batch(method, preset, overrides):
    dit, labels = tiny_dit(preset, **overrides), torch.arange(16) % 3
    guidance = vfmtok.FlowGuidance(2.0, 0.1, 0.9)
    settings = {"method": method, "steps": 3, "guidance": guidance, "seed": 11}
    whole = vfmtok.generate_latents(dit, labels, **settings)
    assert whole.std() > 0.3 and (whole[0] - whole[3]).abs().max() > 0.1  # of one class
    for batch in (1, 7):
        parts = [
            vfmtok.generate_latents(dit, labels[rows], sample_indices=rows, **settings)
            for rows in torch.arange(16).split(batch)
        ]
        assert (torch.cat(parts) - whole).abs().max() < 1e-5
    again = vfmtok.generate(dit, labels, method=method, steps=3, shift=1.0, last=0.0, cfg_scale=2.0, cfg_low=0.1,
                            cfg_high=0.9, seed=11)  # fmt: skip
    assert torch.equal(again, whole)


def test_latents_come_out_in_the_tokenizer_s_units():
    dit, labels = tiny_dit(), torch.tensor([0, 1])
    plain = vfmtok.generate_latents(dit, labels, steps=3)
    dit.statistics.mean.fill_(5.0)
    dit.statistics.std.fill_(2.0)
    dit.statistics.multiplier.fill_(0.5)
    assert torch.allclose(vfmtok.generate_latents(dit, labels, steps=3), plain * 4 + 5, atol=1e-5)
    raw = torch.randn(2, 2, 4, 4)
    assert torch.allclose(dit.statistics.restore(dit.statistics.normalise(raw)), raw, atol=1e-5)


def test_guidance_is_off_at_scale_1_and_outside_of_its_interval():
    dit, labels, calls = tiny_dit(), torch.tensor([0, 1]), []
    dit.register_forward_hook(lambda module, given, out: calls.append(len(given[0])))
    vfmtok.generate_latents(dit, labels, steps=4)
    assert calls == [2] * 4
    calls.clear()
    vfmtok.generate_latents(dit, labels, steps=4, guidance=vfmtok.FlowGuidance(3.0, 0.5, 0.75))
    assert calls == [2, 4, 4, 2]  # at 1, 0.75, 0.5, 0.25


def test_time_grid():
    assert time_grid("euler", 4) == [1, 0.75, 0.5, 0.25, 0]
    assert time_grid("sde", 3) == pytest.approx([1, 0.52, 0.04, 0])
    assert time_grid("euler", 99, 4, 0.001)[-1] == pytest.approx(0.00399, abs=1e-5)


def test_normals_are_normal_and_have_addresses():
    noise = normals(9, torch.arange(200), torch.tensor([4]), 1003).double()
    n = noise.numel()
    moments = [noise.mean(), noise.square().mean() - 1, noise.pow(3).mean(), noise.pow(4).mean() - 3]
    assert all(
        abs(moment) < 5 * (variance / n) ** 0.5 for moment, variance in zip(moments, (1, 2, 15, 96), strict=True)
    )
    ordered = noise.flatten().sort().values
    expected = torch.special.ndtr(ordered)
    assert (expected - (torch.arange(n) + 0.5) / n).abs().max() < 2 / n**0.5  # Kolmogorov and Smirnov
    for shift in (1, 2, 3):  # neighbours of a block
        assert abs(torch.corrcoef(torch.stack([noise[:, shift:].flatten(), noise[:, :-shift].flatten()]))[0, 1]) < 0.012
    again = normals(9, torch.tensor([7, 2]), torch.tensor([4]), 30)
    assert torch.equal(again.double(), noise[[7, 2], :30])


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"method": "dopri5"}, "method"),
        ({"steps": 0}, "steps"),
        ({"method": "sde", "last": 0.1}, "last"),
        ({"shift": 0.0}, "shift"),
        ({"cfg_low": 0.9, "cfg_high": 0.1}, "cfg_low"),
        ({"cfg_channels": 0}, "cfg_channels"),
        ({"cfg_scale": -1.0}, "cfg_scale"),
        ({"temperature": 0.5}, "temperature"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_settings(settings, name):
    with pytest.raises(vfmtok.ConfigError, match=name):
        vfmtok.generate(tiny_dit(), torch.tensor([0]), **settings)


def test_impossible_labels_and_numbers():
    dit = tiny_dit()
    with pytest.raises(vfmtok.ConfigError, match="labels"):
        vfmtok.generate(dit, torch.tensor([4]))
    nn.init.constant_(dit.output.linear.bias, math.nan)
    with pytest.raises(vfmtok.VFMTokError, match="not finite"):
        vfmtok.generate(dit, torch.tensor([0]), steps=1)


REG = {"token_dim": 5, "align_depth": 1, "align_dims": [5], "align_hidden": 8}


def test_noise_in_any_form_is_the_same_noise():
    """A start alone, in a list of steps, as a pair with the class token's, or flat."""
    labels, z = torch.tensor([0, 2]), torch.randn(2, 2, 4, 4)
    dit = tiny_dit()
    forms = [z, [z], z.flatten(1), [z.flatten(1)], (z, None), z[None]]
    found = [vfmtok.generate_latents(dit, labels, steps=2, noises=form) for form in forms]
    assert all(torch.equal(one, found[0]) for one in found[1:])
    reg, token = tiny_dit("REG-XL/1", **REG), torch.randn(2, 5)
    flat = torch.cat([z.flatten(1), token], 1)
    forms = [(z, token), [z, token], [(z, token)], flat, [flat], flat[None]]
    found = [vfmtok.generate_latents(reg, labels, "heun", 2, noises=form) for form in forms]
    assert all(torch.equal(one, found[0]) for one in found[1:])
    for model, wrong in (
        (dit, z[:1]), (dit, z[:, :1]), (dit, flat), (dit, [(z, token)]), (reg, z), (reg, (z, token[:1])), (reg, [z, z]),
    ):  # fmt: skip
        with pytest.raises(vfmtok.ConfigError, match=r"noises of step 0 must be \(2, 2, 4, 4\)"):
            vfmtok.generate_latents(model, labels, steps=2, noises=wrong)
    with pytest.raises(vfmtok.ConfigError, match="step 1 needs some"):
        vfmtok.generate_latents(dit, labels, "sde", 3, noises=z)


def test_labels_may_be_a_list_and_the_shift_that_of_training():
    dit = tiny_dit(time_shift=4.0)
    trained = vfmtok.generate_latents(dit, [0, 1], steps=3, shift=None)
    assert torch.equal(trained, vfmtok.generate_latents(dit, torch.tensor([0, 1]), steps=3, shift=4.0))
    assert not torch.equal(trained, vfmtok.generate_latents(dit, [0, 1], steps=3))
    with pytest.raises(ValueError, match="int64"):
        vfmtok.generate_latents(dit, [0.5])


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"scale": math.nan}, "scale"),
        ({"low": 0.9, "high": 0.1}, "low"),
        ({"high": 1.1}, "high"),
        ({"channels": -1}, "channels"),
        ({"token_scale": math.inf}, "token_scale"),
    ],
)
def test_impossible_guidance(settings, name):
    with pytest.raises(vfmtok.ConfigError, match=f"guidance {name} must be"):
        vfmtok.FlowGuidance(**settings)


def test_a_weaker_model_must_make_the_same_and_is_left_as_it_was():
    dit, labels = tiny_dit(), torch.tensor([0, 1])
    others = {"code": {"in_channels": 3}, "num_classes": {"num_classes": 4}}
    for name, overrides in others.items():
        with pytest.raises(vfmtok.ConfigError, match=f"the {name} of the model that guides"):
            vfmtok.generate_latents(dit, labels, guidance=vfmtok.FlowGuidance(2.0, weaker=tiny_dit(**overrides)))
    with pytest.raises(vfmtok.ConfigError, match="token_dim"):
        vfmtok.generate_latents(dit, labels, guidance=vfmtok.FlowGuidance(2.0, weaker=tiny_dit("REG-XL/1", **REG)))
    weaker = tiny_dit(depth=1).train()
    guided = vfmtok.generate_latents(dit, labels, steps=2, guidance=vfmtok.FlowGuidance(2.0, weaker=weaker))
    assert weaker.training and not torch.equal(guided, vfmtok.generate_latents(dit, labels, steps=2))


@pytest.mark.parametrize("preset", ["LightningDiT-B/1", "REG-XL/1", "DiTDH-S"])
def test_every_setting_says_what_it_does(preset):
    overrides = {"REG-XL/1": REG, "DiTDH-S": {"head_width": 24, "head_heads": 2}}.get(preset, {})
    assert all(setting.metadata["help"] for setting in dataclasses.fields(tiny_dit(preset, **overrides).sampling))
