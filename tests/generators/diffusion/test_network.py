"""Configurations, first weights, fixed tables and losses of the diffusion family."""

import pytest
import torch
from published_cases import model_of

import vfmtok
from vfmtok.generators.counter_random import Draws
from vfmtok.generators.diffusion.released import fields_of_released


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("width", {"width": 50}),
        ("size", {"size": 5, "patch": 2}),
        ("align_depth", {"align_dims": [8]}),
        ("align_depth", {"align_depth": 9, "align_dims": [8]}),
        ("head_width", {"head_width": 24, "head_heads": 2, "token_dim": 4}),
        ("times_end", {"times_end": 0.0}),
        ("norm", {"norm": "batch"}),
        ("time_shift", {"time_shift": 0.0}),
        ("depht", {"depht": 3}),
    ],
)
def test_impossible_configurations(name, wrong):
    with pytest.raises(vfmtok.ConfigError, match=name):
        vfmtok.dit_config("LightningDiT-B/1", **{"width": 16, "depth": 2, "heads": 2, **wrong})


@pytest.mark.parametrize("preset", ["LightningDiT-B/1", "REG-XL/1", "DiTDH-S"])
def test_a_new_network_is_still(preset):
    """Its velocity is 0, its linear layers are drawn as the publication draws them."""
    shape = {"width": 32, "depth": 2, "heads": 4, "in_channels": 3, "size": 4}
    shape |= {"align_depth": 1} if preset == "REG-XL/1" else {}
    dit = vfmtok.DiT(vfmtok.dit_config(preset, **shape))
    token = torch.randn(2, 768) if dit.config.token_dim else None
    out = dit(torch.randn(2, 3, 4, 4), torch.rand(2), torch.tensor([0, 1000]), token)
    assert not out.velocity.any() and (token is None or not out.token_velocity.any())
    qkv, rows = dit.blocks[0].attention.qkv.weight, 32
    bound = rows**-0.5 if preset == "DiTDH-S" else (6 / (rows + 3 * rows)) ** 0.5
    assert bound * 0.95 < qkv.abs().max() <= bound
    assert dit.time.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_fixed_tables_of_files_are_checked():
    dit = model_of("ldit_tiny")
    released = vfmtok.to_released(dit)
    vfmtok.load_released(dit, released)
    for name in ("pos_embed", "feat_rope.freqs_sin"):
        wrong = {**released, name: released[name] + 1e-3}
        with pytest.raises(vfmtok.WeightsError, match=name):
            vfmtok.load_released(dit, wrong)
    with pytest.raises(vfmtok.WeightsError, match="unexpected"):
        vfmtok.load_released(dit, {**released, "dec_feat_rope.freqs_cos": released["feat_rope.freqs_cos"]})


def test_tables_of_another_size_are_computed_not_resampled():
    released = vfmtok.to_released(model_of("ldit_tiny"))
    config = vfmtok.dit_config("LightningDiT-B/1", in_channels=8, size=9, width=48, depth=3, heads=4, num_classes=10)
    larger = vfmtok.load_released(vfmtok.DiT(config), released)
    assert torch.equal(larger.positions, vfmtok.DiT(config).positions)
    assert torch.equal(larger.blocks[2].mlp.w3.weight, released["blocks.2.mlp.w3.weight"])


@pytest.mark.parametrize("case", ["ldit_tiny_qk", "ldit_tiny_plain", "reg_tiny", "dh_tiny"])
def test_what_files_tell_of_the_configuration(case):
    dit = model_of(case)
    found = fields_of_released(vfmtok.to_released(dit))
    assert found.keys() >= {"in_channels", "size", "patch", "num_classes", "qk_norm"}
    for name, value in found.items():
        own = getattr(dit.config, name)
        assert value == (list(own) if isinstance(own, tuple) else own), name


def test_recomputing_activations_changes_no_gradient():
    dit, gradients = model_of("dh_tiny").train(), []
    x, t, y = torch.randn(2, 8, 4, 4), torch.rand(2), torch.tensor([0, 3])
    for recompute in (False, True):
        dit.checkpoint_activations = recompute
        dit.zero_grad()
        vfmtok.flow_loss(dit, x, y, t, torch.ones_like(x)).total.mean().backward()
        gradients.append([parameter.grad.clone() for parameter in dit.parameters() if parameter.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_under_bfloat16_autocast_the_velocity_is_near_and_float32():
    for case in ("ldit_tiny_qk", "dh_tiny"):
        dit = model_of(case)
        x = torch.randn(2, *dit.code.shape)
        with torch.no_grad():
            exact = dit(x, torch.tensor([0.2, 0.9]), torch.tensor([0, 3])).velocity
            with torch.autocast("cpu", torch.bfloat16):
                rounded = dit(x, torch.tensor([0.2, 0.9]), torch.tensor([0, 3])).velocity
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()
        assert dit.to(torch.bfloat16)(x, torch.tensor([0.2, 0.9]), torch.tensor([0, 3])).velocity.dtype == torch.float32


def test_loss_of_raw_latents():
    """Normalised once; the same for a sample in any batch; labels are dropped in training only."""
    dit = model_of("ldit_tiny")
    dit.statistics.mean.fill_(3.0)
    dit.statistics.std.fill_(4.0)
    raw, labels = 3 + 4 * torch.randn(40, 8, 6, 6), torch.arange(40) % 10
    draws, rows = Draws(5, torch.arange(40)), torch.arange(40).split(10)
    terms = dit.train().loss(raw, labels, draws)
    assert terms.keys() == {"mse", "cosine"}
    parts = [dit.loss(raw[part], labels[part], Draws(5, part)) for part in rows]
    for name, term in terms.items():
        assert term.item() == pytest.approx(sum(part[name].item() for part in parts) / 4, rel=1e-5)
    shifted = model_of("ldit_tiny").train()
    assert shifted.loss((raw - 3) / 4, labels, draws)["mse"].item() == pytest.approx(terms["mse"].item(), rel=1e-5)
    unlabelled = dit.loss(raw, torch.full_like(labels, 10), draws)
    assert unlabelled["mse"] != terms["mse"]
    seen = []
    dit.register_forward_pre_hook(lambda module, given: seen.append(given[2]))
    dit.loss(raw, labels, draws)
    dropped = seen[-1] == dit.null_class
    assert 0 < dropped.sum() < 12 and torch.equal(seen[-1][~dropped], labels[~dropped])
    dit.eval().loss(raw, labels, draws)
    assert torch.equal(seen[-1], labels)


def test_what_a_loss_can_t_use_is_refused():
    plain, reg = model_of("ldit_tiny"), model_of("reg_tiny")
    cases = [
        (plain, "token ", {"token": torch.zeros(2, 4), "token_noise": torch.zeros(2, 4)}),
        (plain, "targets", {"targets": torch.zeros(2, 36, 8)}),
        (reg, "token ", {}),
        (reg, "token_noise", {"token": torch.zeros(2, reg.config.token_dim)}),
    ]
    for dit, name, given in cases:
        latents = torch.randn(2, *dit.code.shape)
        with pytest.raises(vfmtok.ConfigError, match=f"^{name}"):
            vfmtok.flow_loss(dit, latents, torch.tensor([0, 1]), torch.tensor([0.2, 0.7]), latents, **given)


def test_held_out_times_are_the_same_at_every_step():
    """Evenly spread, also far into a data set, whatever the step; the training's times change with it."""
    config = {"in_channels": 2, "size": 4, "width": 16, "depth": 1, "heads": 2, "num_classes": 3}
    dit = vfmtok.DiT(vfmtok.dit_config("LightningDiT-B/1", **config, uniform_from_step=5))
    raw, labels, draws = torch.randn(64, 2, 4, 4), torch.arange(64) % 3, Draws(5, 2**19 + torch.arange(64))
    times = []
    dit.register_forward_pre_hook(lambda module, given: times.append(given[1].sort().values))
    for training in (False, True):
        dit.train(training)
        for dit.step in (0, 5):
            dit.loss(raw, labels, draws)
    assert torch.equal(times[0], times[1]) and not torch.equal(times[2], times[3])
    gaps = torch.special.ndtr(torch.logit(times[0].double())).diff()
    assert gaps.min() > 0.3 / 64 and gaps.max() < 2.5 / 64


@pytest.mark.parametrize("case", ["reg_tiny", "dh_tiny"])
def test_statistics_and_tables_are_never_cast_down(case):
    dit = model_of(case)
    dit.use_statistics(torch.rand(dit.code.shape), torch.rand(dit.code.shape) + 0.1)
    names = ["statistics.mean", "statistics.std", "statistics.multiplier", "positions", "classes.weight"]
    names += ["time.frequencies"] if case == "dh_tiny" else []
    before = {name: tensor.clone() for name, tensor in dit.state_dict().items()}
    assert set(names) < before.keys()
    dit.to(torch.bfloat16)
    after = dit.state_dict()
    for name, tensor in before.items():
        kept = name in names
        assert after[name].dtype == (torch.float32 if kept else torch.bfloat16), name
        assert not kept or torch.equal(after[name], tensor), name
    labels = torch.tensor([0, 1])
    rounded = vfmtok.generate_latents(dit, labels, steps=2)
    exact = vfmtok.generate_latents(dit.float(), labels, steps=2)
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()
    assert torch.equal(dit.double().state_dict()["statistics.mean"], before["statistics.mean"].double())


def test_a_model_knows_whether_it_has_statistics():
    dit = model_of("ldit_tiny")
    assert dit.latent_statistics is None
    other = model_of("ldit_tiny")
    other.use_statistics(torch.zeros(8, 1, 1), torch.ones(8, 1, 1))
    assert torch.equal(other.latent_statistics[1], torch.ones(dit.code.shape))
    dit.statistics.std.fill_(2.0)  # as a checkpoint does
    assert dit.latent_statistics is not None
    plain = {"in_channels": 2, "size": 4, "width": 16, "depth": 1, "heads": 2, "num_classes": 3, "multiplier": 0.25}
    scaled = vfmtok.DiT(vfmtok.dit_config("LightningDiT-B/1", **plain, normalised="none"))
    mean, std = scaled.latent_statistics
    raw = torch.randn(3, 2, 4, 4)
    assert torch.equal((raw - mean) / std, scaled.statistics.normalise(raw)) and (std == 4).all()


def test_weights_to_sample_from_may_lack_the_alignment():
    released = {
        name: t for name, t in vfmtok.to_released(model_of("reg_tiny")).items() if not name.startswith("projectors.")
    }
    reg = model_of("reg_tiny").config
    shape = {"width": reg.width, "depth": reg.depth, "heads": reg.heads}
    dit = vfmtok.DiT(vfmtok.dit_config("REG-XL/1", **{**shape, **fields_of_released(released)}))
    assert vfmtok.load_released(dit, released).config.align_depth is None
