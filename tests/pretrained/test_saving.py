"""save_pretrained and push_to_hub -> from_pretrained: the same model, bit for bit, and a card with its numbers."""

import json

import pytest
import torch
import yaml
from saved_models import assert_same
from tiny_gpt import random_gpt

import vfmtok
from vfmtok.config import config_from_dict
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.pretrained import loading as pretrained
from vfmtok.tokenizers import AnyTokenizerConfig

RESULTS = {
    "numbers": {"rFID": {"value": 0.89123, "protocol": "50,000 reconstructions | at 256 px", "digits": 3}},
    "warnings": ["12 images are copies"],
    "notes": ["LPIPS is left out"],
}


@pytest.mark.parametrize("frozen", [True, False])
def test_a_tokenizer_comes_back_exactly(tiny_tokenizer, encoder_file, tmp_path, frozen):
    before = tiny_tokenizer(f"encoder.weights={encoder_file}", f"encoder.frozen={str(frozen).lower()}").eval()
    folder = vfmtok.save_pretrained(before, tmp_path / "saved")
    # A trained encoder is saved with the rest: what it began with, "auto" now, is not looked for.
    after = vfmtok.from_pretrained(folder, overrides=[f"encoder.weights={encoder_file}"] if frozen else [])
    assert_same(before, after)
    assert after.config.encoder.weights_sha256 == before.config.encoder.weights_sha256
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(before(images).reconstruction, after(images).reconstruction)
    assert str(tmp_path) not in (folder / "config.yaml").read_text()  # no path of this machine
    assert before.config.encoder.weights_sha256 in (folder / "config.yaml").read_text()


def test_a_tokenizer_needs_the_encoder_it_was_trained_with(tokenizer, encoder_file, tmp_path):
    folder = vfmtok.save_pretrained(tokenizer, tmp_path / "saved")
    torch.save({k: v + 1 for k, v in torch.load(encoder_file).items()}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other.pt has SHA-256 .*, the configuration asks for"):
        vfmtok.from_pretrained(folder, overrides=[f"encoder.weights={tmp_path / 'other.pt'}"])


def test_a_generator_comes_back_exactly(gpt, tmp_path):
    folder = vfmtok.save_pretrained(gpt, tmp_path / "saved", classes=["a", "b", "yes"], tokenizer_hash="f" * 64)
    after = vfmtok.from_pretrained(folder, "gpt")
    assert_same(gpt, after)
    assert after.config == gpt.config
    weights = pretrained.read_weights(folder, "generator")
    assert weights.classes == ["a", "b", "yes"] and weights.tokenizer_hash == "f" * 64


def test_a_run_comes_back_exactly_and_one_repository_may_hold_both(tokenizer, gpt, encoder_file, tmp_path):
    vfmtok.save_pretrained(tokenizer, tmp_path / "both/tokenizer")
    vfmtok.save_pretrained(gpt, tmp_path / "both/gpt")
    assert_same(vfmtok.from_pretrained(tmp_path / "both", overrides=[f"encoder.weights={encoder_file}"]), tokenizer)
    assert_same(vfmtok.from_pretrained(tmp_path / "both", "gpt"), gpt)


def test_the_card_has_the_numbers_with_their_protocols(tokenizer, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    folder = vfmtok.save_pretrained(tokenizer, tmp_path / "saved", metrics=tmp_path / "results.json", name="me/it")
    card = (folder / "README.md").read_text()
    assert "| rFID | 0.891 | 50,000 reconstructions \\| at 256 px |" in card
    assert "- 12 images are copies\n- LPIPS is left out\n" in card
    assert 'tokenizer = vfmtok.from_pretrained("me/it")' in card
    count = sum(p.numel() for n, p in tokenizer.named_parameters() if not n.startswith("encoder."))
    assert f"| parameters | {count:,} without the frozen encoder |" in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "vfmtok"


def test_a_number_that_is_none_and_one_that_is_no_number(gpt, tmp_path):
    numbers = {"gFID": {"value": None, "protocol": "50,000 samples", "digits": 3}}
    folder = vfmtok.save_pretrained(gpt, tmp_path / "saved", metrics={"numbers": numbers})
    assert "| gFID | none | 50,000 samples |" in (folder / "README.md").read_text()
    for entry in ({"value": "2.1", "protocol": "p"}, {"value": 2.1, "protocol": "  "}):
        with pytest.raises(ConfigError, match="'gFID' "):
            vfmtok.save_pretrained(gpt, tmp_path / "other", metrics={"numbers": {"gFID": entry}})


def test_other_quantizers_and_other_attention_come_back_exactly(tiny_tokenizer, encoder_file, tmp_path):
    fsq = ("kind=fsq", "levels=[4,4,2,2]", "codebook_size=64", "code_dim=4")
    encoder = f"encoder.weights={encoder_file}"
    before = tiny_tokenizer(encoder, *(f"quantizer.{setting}" for setting in fsq)).eval()
    after = vfmtok.from_pretrained(vfmtok.save_pretrained(before, tmp_path / "fsq"), overrides=[encoder])
    assert_same(before, after)
    assert after.config.quantizer == before.config.quantizer and after.config.quantizer.levels == (4, 4, 2, 2)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(before(images).reconstruction, after(images).reconstruction)
    normed = random_gpt(vocab_size=64, num_classes=3, qk_norm=True)
    after = vfmtok.from_pretrained(vfmtok.save_pretrained(normed, tmp_path / "qk"), "gpt")
    assert_same(normed, after)
    assert after.config == normed.config and after.config.qk_norm


def test_a_tokenizer_of_another_kind_comes_back_exactly(tmp_path):
    """A VQGAN has no frozen part: all of it is saved."""
    torch.manual_seed(0)
    shape = {"channels": 32, "multipliers": [1, 1], "res_blocks": 1}
    tree = {"kind": "vqgan", "image_size": 16, "z_channels": 32, "encoder": shape, "pixel_decoder": shape}
    before = vfmtok.build_tokenizer(config_from_dict(tree, AnyTokenizerConfig)).eval()
    folder = vfmtok.save_pretrained(before, tmp_path / "saved")
    assert yaml.safe_load((folder / "config.yaml").read_text())["tokenizer"]["kind"] == "vqgan"
    assert_same(vfmtok.from_pretrained(folder), before)


def test_what_version_0_1_saved_is_read(gpt, tmp_path):
    folder = vfmtok.save_pretrained(gpt, tmp_path / "both/gpt")
    text = (folder / "config.yaml").read_text()
    assert text.startswith("generator:\n  kind: gpt\n")
    (folder / "config.yaml").write_text(text.replace("generator:\n  kind: gpt\n", "gpt:\n", 1))
    for part in ("gpt", "generator"):
        assert_same(vfmtok.from_pretrained(tmp_path / "both", part), gpt)


def test_a_damaged_configuration_is_one_line(gpt, tmp_path):
    folder = vfmtok.save_pretrained(gpt, tmp_path / "saved")
    for content in (b"gpt: [\n - a\n", b"\xff\xfe\x00gpt"):
        (folder / "config.yaml").write_bytes(content)
        for read in (lambda: vfmtok.from_pretrained(folder, "gpt"), lambda: pretrained.read_weights(folder)):
            with pytest.raises(ConfigError, match=r"config.yaml") as error:
                read()
            assert "\n" not in str(error.value)


def test_what_cannot_be_saved(tokenizer, gpt, tmp_path):
    for metrics in ({"numbers": {"rFID": {"value": 1.0, "protocol": ""}}}, {"rFID": 1.0}, tmp_path / "absent.json"):
        with pytest.raises(ConfigError):
            vfmtok.save_pretrained(tokenizer, tmp_path / "saved", metrics=metrics)
    with pytest.raises(ConfigError, match="2 names for the 3 classes"):
        vfmtok.save_pretrained(gpt, tmp_path / "saved", classes=["a", "b"])
    with pytest.raises(ConfigError, match="neither a tokenizer nor a generator"):
        vfmtok.save_pretrained(torch.nn.Linear(2, 2), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_changed_file_is_found_out(gpt, tmp_path):
    folder = vfmtok.save_pretrained(gpt, tmp_path / "saved")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="cut or changed"):
        vfmtok.from_pretrained(folder, "gpt")


def test_random_encoders_are_told(tiny_tokenizer, tmp_path):
    with pytest.warns(UserWarning, match=r"who opens this model must set encoder.weights"):
        vfmtok.save_pretrained(tiny_tokenizer(), tmp_path / "saved")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_pushed_and_opened_from_the_hub(hub, tokenizer, gpt, encoder_file, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
    vfmtok.push_to_hub(tokenizer, "me/it", metrics=RESULTS)
    address = vfmtok.push_to_hub(gpt, "me/it", part="gpt")
    assert address.startswith(hub.url)
    assert "| rFID | 0.891 |" in hub.repositories["me/it"]["README.md"].decode()
    assert_same(vfmtok.from_pretrained("me/it", overrides=[f"encoder.weights={encoder_file}"]), tokenizer)
    assert_same(vfmtok.from_pretrained("me/it", "gpt"), gpt)
    assert_same(vfmtok.from_pretrained("me/it", "gpt", local_files_only=True), gpt)


def test_a_refused_push_is_one_line(hub, gpt, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"cannot push to me/it at http://127.0.0.1:9") as error:
        vfmtok.push_to_hub(gpt, "me/it")
    assert "\n" not in str(error.value)
