"""LlamaGen's, Hita's, RAR's and VFMAE's files: found by part, read from every wrapper, written again as they were."""

import golden_rule
import pytest
import releases
import torch
from releases import HITA, LLAMAGEN, VFMTOK, model_of, training_checkpoint
from safetensors.torch import save, save_file
from saved_models import assert_same, torch_file

import vfmtok
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.pretrained import loading
from vfmtok.pretrained.published import PUBLISHED

# A part of every system, small, and how its files keep it.
PARTS = {
    (LLAMAGEN, "vq_ds16_c2i"): releases.VQGAN,
    (LLAMAGEN, "c2i_B_256"): releases.GPT,
    (HITA, "ultra/GPT-B-250e"): releases.HITA_GPT,
    (VFMTOK, "RAR-L"): releases.RAR,
    (VFMTOK, "vfmae"): releases.VFMAE,
}


@pytest.mark.parametrize(("repository", "part"), PARTS)
def test_a_part_is_downloaded_by_its_name(hub, repository, part):
    """In every form that names it; where a file has the average and the last weights, by its publisher's choice."""
    overrides = PARTS[repository, part]
    row, model = PUBLISHED[repository].parts[part], model_of(repository, part, overrides)
    written = vfmtok.to_released(model)
    safe = row.file.endswith(".safetensors")
    content = (
        save({name: t.contiguous() for name, t in written.items()}) if safe else training_checkpoint(model, row.prefer)
    )
    hub.repositories[repository] = {row.file: content}
    for name, asked in ((repository, part), (f"{repository}:{part}", "tokenizer"), (repository, row.file)):
        opened = vfmtok.from_pretrained(name, asked, overrides=overrides)
        assert_same(opened, model)
    assert opened.config == model.config
    assert {name: tuple(t.shape) for name, t in vfmtok.to_released(opened).items()} == {
        name: tuple(t.shape) for name, t in written.items()
    }
    if not safe:  # an explicit choice goes before the publisher's
        other = "ema" if row.prefer == "model" else "model"
        assert_same(
            vfmtok.from_pretrained(repository, part, overrides=overrides, prefer=other),
            vfmtok.load_released(model, releases.moved(written)),
        )


def test_llamagen_samples_with_the_last_weights_and_others_with_the_average():
    assert {row.prefer for row in PUBLISHED[LLAMAGEN].parts.values()} == {"model"}
    assert {row.prefer for name in (VFMTOK, HITA) for row in PUBLISHED[name].parts.values()} == {"ema"}


@pytest.mark.parametrize("wrapper", [None, "model", "module", "state_dict"])
def test_every_wrapper_of_llamagen_s_files(tmp_path, wrapper):
    """DDP's, DeepSpeed's, FSDP's bare state dict; the rotary table is dropped; nothing else may be too much."""
    gpt = model_of(LLAMAGEN, "c2i_B_256", releases.GPT)
    weights = vfmtok.to_released(gpt) | {"freqs_cis": torch.zeros(65, 4, 2)}
    (tmp_path / "gpt.pt").write_bytes(torch_file(weights if wrapper is None else {wrapper: weights, "steps": 1}))
    assert_same(vfmtok.from_pretrained(tmp_path / "gpt.pt", "GPT-B", overrides=releases.GPT), gpt)
    (tmp_path / "gpt.pt").write_bytes(torch_file({**weights, "freqs": torch.zeros(1)}))
    with pytest.raises(WeightsError, match="1 unexpected: freqs"):
        vfmtok.from_pretrained(tmp_path / "gpt.pt", "GPT-B", overrides=releases.GPT)


def test_the_usage_buffer_is_dropped_and_written_as_zeros(tmp_path):
    tokenizer = model_of(LLAMAGEN, "vq_ds16_c2i", releases.VQGAN)
    written = vfmtok.to_released(tokenizer)
    assert not written["quantize.codebook_used"].any()
    used = written | {"quantize.codebook_used": torch.arange(65536.0)}
    other = vfmtok.build_tokenizer(tokenizer.config)
    assert_same(vfmtok.load_released(other, used), tokenizer)


def test_a_generator_s_shape_is_read_from_its_file(tmp_path):
    """RAR-XL was published with two widths of its feed-forward layers; what the tensors say goes before the row."""
    rar = releases.by_rule(vfmtok.build_generator(vfmtok.rar_config("RAR-L", **_fields(releases.RAR))))
    tensors = {name: tensor.contiguous() for name, tensor in vfmtok.to_released(rar).items()}
    assert vfmtok.RAR.fields_of_released(tensors) == {
        name: v for name, v in _fields(releases.RAR).items() if name != "n_head"
    }
    save_file(tensors, tmp_path / "rar.safetensors")
    assert_same(vfmtok.from_pretrained(tmp_path / "rar.safetensors", "RAR-XL", overrides=["n_head=4"]), rar)
    hita = model_of(HITA, "ultra/GPT-B-50e", releases.HITA_GPT)
    fields = vfmtok.GPT.fields_of_released(vfmtok.to_released(hita))
    assert fields == {"vocab_size": 40, "num_classes": 1000, "num_holistic": 6}


def _fields(overrides):
    return {name: int(value) for name, value in (text.split("=") for text in overrides)}


def test_a_release_in_a_folder(tmp_path):
    """Laid out as in the repository; rows are those of the part, its publisher's choice of weights too."""
    tokenizer = model_of(LLAMAGEN, "vq_ds16_c2i", releases.VQGAN)
    (tmp_path / "vq_ds16_c2i.pt").write_bytes(training_checkpoint(tokenizer, "model"))
    assert_same(vfmtok.from_pretrained(tmp_path, "vq_ds16_c2i", overrides=releases.VQGAN), tokenizer)


@pytest.mark.parametrize(
    ("name", "part", "error", "message"),
    [
        (LLAMAGEN, "tokenizer", WeightsError, "holds 2 parts that are 'tokenizer': name one, such as .*:vq_ds16_c2i"),
        (HITA, "GPT-B", WeightsError, "holds 4 parts that are 'GPT-B'"),
        (LLAMAGEN, "c2i_XL_256", WeightsError, r"no part 'c2i_XL_256' \(closest match: 'c2i_L_256'\)"),
        (f"{HITA}:ultra/GPT-B", "tokenizer", WeightsError, "no part 'ultra/GPT-B'"),
    ],
)
def test_a_part_that_is_not_meant(name, part, error, message):
    with pytest.raises(error, match=message) as raised:
        vfmtok.from_pretrained(name, part)
    assert "\n" not in str(raised.value)


def test_a_generator_of_another_grid_says_which_tokenizer_it_goes_with(hub):
    """A model trained at 384 px has the tensors of one for 256 px: only its row tells them apart."""
    gpt = model_of(LLAMAGEN, "c2i_B_384", releases.GPT)
    hub.repositories[LLAMAGEN] = {"c2i_B_384.pt": training_checkpoint(gpt, "model")}
    tokenizer = model_of(LLAMAGEN, "vq_ds16_c2i", releases.VQGAN)  # 64 tokens
    given = {**_fields(releases.GPT)}
    loaded, weights = loading.load_generator(f"{LLAMAGEN}:c2i_B_384", tokenizer, None, given)
    assert_same(loaded, gpt)
    assert weights.published is PUBLISHED[LLAMAGEN].parts["c2i_B_384"]
    del given["num_tokens"]
    with pytest.raises(ConfigError, match=r"576.* goes with the part vq_ds16_c2i of its repository with image_size"):
        loading.load_generator(f"{LLAMAGEN}:c2i_B_384", tokenizer, None, given)
    with pytest.raises(ConfigError, match="is a GPT-B, not a GPT-L"):
        loading.load_generator(f"{LLAMAGEN}:c2i_B_384", tokenizer, "GPT-L", given)
    with pytest.raises(WeightsError, match="c2i_B_384 is no tokenizer"):
        loading.load_tokenizer(f"{LLAMAGEN}:c2i_B_384")


@pytest.mark.parametrize(
    ("keys", "repository", "part"),
    [
        ("llamagen/vq16_keys.json", LLAMAGEN, "vq_ds16_c2i"),
        ("llamagen/vq8_keys.json", LLAMAGEN, "vq_ds8_c2i"),
        ("gpt_b_keys.json", LLAMAGEN, "c2i_B_384"),
    ],
)
def test_the_published_names_and_shapes(keys, repository, part):
    """Of the rows' own configurations, at full size; no memory is touched."""
    row = PUBLISHED[repository].parts[part]
    build = vfmtok.build_tokenizer if row.section == "tokenizer" else vfmtok.build_generator
    with torch.device("meta"):
        written = vfmtok.to_released(build(row.config))
    assert {name: list(tensor.shape) for name, tensor in written.items()} == golden_rule.shapes(keys)
