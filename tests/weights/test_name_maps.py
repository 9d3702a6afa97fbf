"""Published names in and out: bijective, strict."""

import golden_rule
import pytest
import storage_free
import torch

import vfmtok
from vfmtok.encoders.released import dinov2_official_shapes
from vfmtok.generators.gpt.released import GPT_NAMES
from vfmtok.tokenizers.vfmtok.released import TOKENIZER_NAMES
from vfmtok.weights.name_maps import rename


@pytest.fixture
def checkpoint(tiny_tokenizer):
    return {name: tensor.clone() for name, tensor in vfmtok.to_released(tiny_tokenizer()).items()}


def test_round_trip_is_exact(tiny_tokenizer, checkpoint):
    random = {name: torch.randn_like(tensor) for name, tensor in checkpoint.items()}
    random["slot_quantize.codebook_used"].zero_()
    back = vfmtok.to_released(vfmtok.load_released(tiny_tokenizer(), random))
    assert back.keys() == random.keys()
    assert all(torch.equal(back[name], random[name]) for name in random)


def test_released_names_of_the_tiny_model_are_among_the_published_patterns(checkpoint):
    """Every name of a smaller model of the same build occurs in the release."""
    assert checkpoint.keys() <= golden_rule.shapes("tokenizer_keys.json").keys()


def test_map_is_one_to_one():
    published = [theirs for _, theirs in TOKENIZER_NAMES]
    assert len(set(published)) == len(published)
    assert rename("pixel_decoder.levels.3.blocks.0.shortcut.bias", TOKENIZER_NAMES) == (
        "decoder.conv_blocks.3.res.0.nin_shortcut.bias"
    )
    assert rename("sampler.layers.11.mlp.2.weight", TOKENIZER_NAMES) == (
        "encode_transformer.transformer.layers.11.linear2.weight"
    )


@pytest.mark.parametrize(
    "name", ["pre_slots_quant.bias", "slot_quantize.codebook_used", "decode_transformer.register_tokens"]
)
@pytest.mark.parametrize("damage", ["missing", "unexpected", "mis-shaped"])
def test_damaged_checkpoints_are_refused_by_name(tiny_tokenizer, checkpoint, name, damage):
    tokenizer = tiny_tokenizer()
    before = {key: tensor.clone() for key, tensor in tokenizer.state_dict().items()}
    if damage == "missing":
        del checkpoint[name]
    elif damage == "unexpected":
        name += "_extra"
        checkpoint[name] = torch.zeros(1)
    else:
        checkpoint[name] = torch.zeros(3)
    with pytest.raises(vfmtok.WeightsError, match=f"1 {damage}: {name}"):
        vfmtok.load_released(tokenizer, checkpoint)
    assert all(torch.equal(tensor, before[key]) for key, tensor in tokenizer.state_dict().items())


@pytest.mark.parametrize("override", ["decoder.shared=false", "sampler.attention=windowed"])
def test_a_model_that_was_never_published_is_refused(tiny_tokenizer, override):
    tokenizer = tiny_tokenizer(override)
    with pytest.raises(vfmtok.WeightsError, match="has no name in the other format"):
        vfmtok.to_released(tokenizer)


def tiny_gpt(**overrides):
    torch.manual_seed(0)
    tiny = {"n_layer": 2, "n_head": 2, "dim": 16, "vocab_size": 32, "num_tokens": 4, "num_classes": 3}
    return vfmtok.GPT(vfmtok.gpt_config("GPT-B", **(tiny | overrides)))


def test_gpt_round_trip_is_exact():
    published = {name: torch.randn_like(tensor) for name, tensor in vfmtok.to_released(tiny_gpt()).items()}
    assert published.keys() <= golden_rule.shapes("gpt_b_keys.json").keys()
    back = vfmtok.to_released(vfmtok.load_released(tiny_gpt(), published))
    assert back.keys() == published.keys()
    assert all(torch.equal(back[name], published[name]) for name in published)
    theirs = [name for _, name in GPT_NAMES]
    assert len(set(theirs)) == len(theirs)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "mis-shaped"])
def test_damaged_gpt_checkpoints_are_refused_by_name(damage):
    gpt = tiny_gpt()
    checkpoint = {name: torch.randn_like(tensor) for name, tensor in vfmtok.to_released(gpt).items()}
    name = "layers.1.attention.wqkv.weight"
    if damage == "missing":
        del checkpoint[name]
    elif damage == "unexpected":
        name = "layers.2.attention.wqkv.weight"
        checkpoint[name] = torch.zeros(1)
    else:
        checkpoint[name] = checkpoint[name][:-1]
    with pytest.raises(vfmtok.WeightsError, match=f"not those of GPT: 1 {damage}: {name}"):
        vfmtok.load_released(gpt, checkpoint)
    assert not gpt.output.weight.any()  # nothing was loaded


def test_models_and_parts_that_were_never_published_are_refused(tiny_tokenizer):
    with pytest.raises(vfmtok.WeightsError, match=r"q_norm.weight' has no name in the other format"):
        vfmtok.to_released(tiny_gpt(qk_norm=True))
    with pytest.raises(vfmtok.WeightsError, match="nothing like a Linear was published"):
        vfmtok.load_released(torch.nn.Linear(2, 2), {})
    with pytest.raises(vfmtok.WeightsError, match="not those of GPT"):
        vfmtok.load_released(tiny_gpt(), vfmtok.to_released(tiny_tokenizer()))


def test_official_dinov2_names():
    model = storage_free.create_model("vit_large_patch14_reg4_dinov2", num_classes=0)
    shapes = dinov2_official_shapes({name: tensor.shape for name, tensor in model.state_dict().items()})
    assert {name: list(shape) for name, shape in shapes.items()} == golden_rule.shapes("dinov2_vitl14_reg4_keys.json")


def test_official_names_of_the_gated_giant():
    model = storage_free.create_model("vit_giant_patch14_dinov2", num_classes=0)
    shapes = dinov2_official_shapes({name: tensor.shape for name, tensor in model.state_dict().items()})
    assert shapes["blocks.39.mlp.w12.weight"] == (8192, 1536)
    assert shapes["blocks.39.mlp.w3.weight"] == (1536, 4096)
    assert shapes["pos_embed"] == (1, 1370, 1536)
