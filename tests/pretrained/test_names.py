"""From a name to a model: the published repository, our own, folders and files; what is wrong is said in one line."""

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from saved_models import assert_same, torch_file

import vfmtok
from vfmtok.config import config_to_dict, with_overrides
from vfmtok.encoders.config import EncoderConfig
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.pretrained import loading as pretrained
from vfmtok.pretrained.published import HITA, LLAMAGEN, PUBLISHED, VFMTOK
from vfmtok.weights import download

GPT_SHAPE = ("n_layer=3", "n_head=4", "dim=64", "num_tokens=16")


@pytest.fixture
def open_tokenizer(root, encoder_file):
    """The published tokenizer's way in, for a release of the tiny shape."""
    return lambda name=VFMTOK, **options: vfmtok.from_pretrained(
        name, config=root / "configs/tiny.yaml", overrides=[f"encoder.weights={encoder_file}"], **options
    )


def test_a_release_is_downloaded_loaded_and_sampled_from(hub, released, tokenizer, gpt, open_tokenizer):
    """The average is taken, not the weights beside it; the second time nothing is downloaded."""
    hub.repositories[VFMTOK] = released
    ours, theirs = open_tokenizer(), vfmtok.from_pretrained(VFMTOK, "GPT-B", overrides=GPT_SHAPE)
    assert_same(ours, tokenizer)
    assert_same(theirs, gpt)
    assert not ours.training and not theirs.training and not any(p.requires_grad for p in theirs.parameters())
    ids = vfmtok.generate(theirs, torch.tensor([0, 2]), cfg_scale=1.5, seed=3)
    assert torch.equal(ids, vfmtok.generate(gpt, torch.tensor([0, 2]), cfg_scale=1.5, seed=3))
    assert torch.equal(ours.decode_to_uint8(ids, 32), tokenizer.decode_to_uint8(ids, 32))
    asked = len(hub.gets)
    assert_same(open_tokenizer(local_files_only=True), tokenizer)
    assert_same(open_tokenizer(), tokenizer)
    assert len(hub.gets) == asked == 2


def test_a_release_that_was_laid_into_a_folder(released, tokenizer, gpt, open_tokenizer, tmp_path):
    for name, content in released.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert_same(open_tokenizer(tmp_path), tokenizer)
    assert_same(open_tokenizer(tmp_path / "DINOv2/tokenizer/vfmtok-tokenizer.pt"), tokenizer)
    assert_same(vfmtok.from_pretrained(tmp_path, "GPT-B", overrides=GPT_SHAPE), gpt)


def test_every_published_generator_fits_its_tokenizer():
    """Its code is that of the tokenizer that its row names, at the size that it learned from."""
    for repository in PUBLISHED.values():
        for row in repository.parts.values():
            if row.section == "generator":
                tokenizer = repository.parts[row.tokenizer]
                assert tokenizer.section == "tokenizer"
                assert row.config.code == with_overrides(tokenizer.config, row.tokenizer_settings).code
                assert row.config.num_classes == 1000
            else:
                assert row.size is row.tokenizer is None
    for size in ("GPT-B", "GPT-L", "GPT-XL", "GPT-XXL", "GPT-2B", "GPT-3B"):
        assert PUBLISHED[VFMTOK].parts[size].config == vfmtok.gpt_config(size)


@pytest.mark.parametrize(
    ("repository", "part", "file"),
    [
        (VFMTOK, "tokenizer", "vit_transformer.yaml"),
        (LLAMAGEN, "vq_ds16_c2i", "vqgan/vq16.yaml"),
        (LLAMAGEN, "vq_ds8_c2i", "vqgan/vq8.yaml"),
        (HITA, "vanilla/tokenizer", "hita_vqgan.yaml"),
        (HITA, "ultra/tokenizer", "hita_vqgan_ultra.yaml"),
    ],
)
def test_the_published_tokenizers_are_those_of_the_papers(root, repository, part, file):
    published = PUBLISHED[repository].parts[part].config
    paper = vfmtok.load_config(root / "configs" / file)  # it writes out what a frozen encoder fills in
    assert published == dataclasses.replace(paper, encoder=published.encoder)
    if PUBLISHED[repository].encoder is None:
        assert published == paper
    else:
        assert (published.encoder.name, published.encoder.weights) == (paper.encoder.name, "auto")
        for field in dataclasses.fields(published.encoder):
            value = getattr(published.encoder, field.name)
            if field.name != "weights" and value != getattr(EncoderConfig(), field.name):
                assert value == getattr(paper.encoder, field.name)


# --------------------------------------------------------------------------------------
# What goes wrong
# --------------------------------------------------------------------------------------


def test_a_wrong_hash_and_a_pinned_one(hub, released, open_tokenizer, monkeypatch):
    hub.repositories[VFMTOK] = released
    with pytest.raises(WeightsError, match="0000 is asked for"):
        open_tokenizer(sha256="0" * 64)
    parts = PUBLISHED[VFMTOK].parts
    monkeypatch.setitem(parts, "tokenizer", dataclasses.replace(parts["tokenizer"], sha256="1" * 64))
    with pytest.raises(WeightsError, match="1111 is asked for"):
        open_tokenizer()
    hub.corrupt = True
    with pytest.raises(WeightsError, match="the Hub states; what was received is thrown away"):
        vfmtok.from_pretrained(VFMTOK, "GPT-B", overrides=GPT_SHAPE)


class Payload:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_code_in_a_released_file_does_not_run(hub, released, open_tokenizer, tmp_path):
    (file,) = [name for name in released if "tokenizer" in name]
    hub.repositories[VFMTOK] = {file: torch_file({"ema": {"a": torch.zeros(1)}, "args": Payload(tmp_path / "ran")})}
    with pytest.raises(WeightsError, match=r"asks for posix.system, which may run code"):
        open_tokenizer()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        (VFMTOK, "GPT-XLL", r"no part 'GPT-XLL' \(closest match: 'GPT-X+L'\): it has tokenizer, .*GPT-B"),
        (VFMTOK, "GPT-B", "the repository has no file yexiguafu/VFMTok/DINOv2/GPT-B/GPT-B-300e.pt"),
        ("me/nothing", "tokenizer", "no repository 'me/nothing' .*; nor is there a file or folder me/nothing here"),
        ("no/such/folder", "tokenizer", "no file or folder no/such/folder, and it is no Hub repository's name"),
    ],
)
def test_what_is_not_there(hub, name, part, message):
    hub.repositories[VFMTOK] = {}
    with pytest.raises(WeightsError, match=message) as error:
        vfmtok.from_pretrained(name, part)
    assert "\n" not in str(error.value)


def test_a_published_name_goes_wherever_a_path_of_weights_does(hub, released, gpt, tokenizer, root, encoder_file):
    hub.repositories[VFMTOK] = released
    weights = pretrained.read_weights(VFMTOK, "generator", "GPT-B")
    config = pretrained.generator_config(weights, "GPT-B", {"n_layer": 3, "n_head": 4, "dim": 64, "num_tokens": 16})
    assert_same(pretrained.build(weights, config), gpt)
    assert "('ema')" in weights.source
    encoder = f"encoder.weights={encoder_file}"
    assert_same(pretrained.load_tokenizer(VFMTOK, root / "configs/tiny.yaml", [encoder]), tokenizer)
    assert pretrained.read_config(VFMTOK).quantizer.codebook_size == 16384
    with pytest.raises(WeightsError, match=r"holds 12 parts that are 'generator': name one, such as .*:GPT-B "):
        pretrained.read_weights(VFMTOK, "generator")


def test_a_generator_s_file_must_be_named(gpt, tmp_path):
    torch.save(vfmtok.to_released(gpt), tmp_path / "gpt.pt")
    with pytest.raises(ConfigError, match="does not say which size it is: give part='GPT-B' or a config"):
        vfmtok.from_pretrained(tmp_path / "gpt.pt", "gpt")
    with pytest.raises(WeightsError, match="these weights are not those of GPT"):
        vfmtok.from_pretrained(tmp_path / "gpt.pt", "GPT-L", overrides=["num_tokens=16"])
    assert_same(vfmtok.from_pretrained(tmp_path / "gpt.pt", "gpt", config=gpt.config), gpt)


def test_the_hash_is_of_what_is_loaded(gpt, tmp_path):
    folder = vfmtok.save_pretrained(gpt, tmp_path / "saved")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert_same(vfmtok.from_pretrained(folder, "gpt", sha256=digest), gpt)
    average = {name: tensor + 1 for name, tensor in gpt.state_dict().items()}
    save_file(average, folder / "ema.safetensors")  # is taken before the other
    (folder / "config.yaml").write_text(yaml.safe_dump({"gpt": config_to_dict(gpt.config)}))
    with pytest.raises(WeightsError, match=r"ema.safetensors does not have the SHA-256"):
        vfmtok.from_pretrained(folder, "gpt", sha256=digest)
    run = tmp_path / "run/checkpoints/step_0000001"
    run.parent.mkdir(parents=True)
    folder.rename(run)
    digest = hashlib.sha256((run / "ema.safetensors").read_bytes()).hexdigest()
    taken = vfmtok.from_pretrained(tmp_path / "run", "gpt", sha256=digest)
    assert torch.equal(taken.output.weight, average["output.weight"])


def test_a_size_is_not_taken_for_another(gpt, tmp_path, hub):
    folder = vfmtok.save_pretrained(gpt, tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"the generator of .* has n_layer 3, not 24"):
        vfmtok.from_pretrained(folder, "GPT-L")
    for name in (folder, "me/it"):
        with pytest.raises(ConfigError, match="no generator is called 'tokeniser'"):
            vfmtok.from_pretrained(name, "tokeniser")


def test_a_damaged_part_is_not_passed_over_for_the_one_at_the_top(hub, gpt, tmp_path):
    other = {name: vfmtok.save_pretrained(gpt, tmp_path / name) for name in ("top", "gpt")}
    hub.repositories["me/it"] = {
        prefix + file: (folder / file).read_bytes()
        for prefix, folder in (("", other["top"]), ("gpt/", other["gpt"]))
        for file in ("config.yaml", "model.safetensors")
    }
    hub.repositories["me/it"]["gpt/config.yaml"] += b"\n"  # another hash than the one at the top
    for file in ("config.yaml", "model.safetensors"):
        download.fetch("me/it", file)
    hub.corrupt = True
    with pytest.raises(WeightsError, match=r"me/it/gpt/config.yaml: .* what was received is thrown away"):
        vfmtok.from_pretrained("me/it", "gpt")
    hub.corrupt = False
    del hub.repositories["me/it"]["gpt/config.yaml"]
    assert_same(vfmtok.from_pretrained("me/it", "gpt"), gpt)
    assert_same(vfmtok.from_pretrained("me/it", "gpt", local_files_only=True), gpt)
    with pytest.raises(WeightsError, match=r"me/new/gpt/config.yaml is not in the cache"):
        vfmtok.from_pretrained("me/new", "gpt", local_files_only=True)


# --------------------------------------------------------------------------------------
# The frozen encoder
# --------------------------------------------------------------------------------------

WHERE = """
import sys, vfmtok
from vfmtok.encoders.vfm import EncoderConfig
from vfmtok.encoders.vfm import Encoder
try:
    encoder = Encoder(EncoderConfig(name="test_vit.r160_in1k", levels=(6,), weights="auto", image_size=160))
except vfmtok.WeightsError as error:
    sys.exit(f"WeightsError: {error}")
print(encoder.config.weights, encoder.config.weights_sha256)
"""


@pytest.mark.slow
def test_the_encoder_is_looked_for_here_and_then_on_the_hub(hub, tmp_path, root):
    import hashlib

    import timm
    from safetensors.torch import save

    content = save(timm.create_model("test_vit").state_dict())

    def build(**environment):
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(
            [sys.executable, "-c", WHERE], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )

    absent = build(HF_HUB_OFFLINE="1").stderr.strip().splitlines()[-1]
    assert "no file is named (encoder.weights=PATH), there is no" in absent
    assert f"{tmp_path}/init_models/test_vit.r160_in1k.safetensors, and the Hub, through timm, does not" in absent
    hub.repositories["timm/test_vit.r160_in1k"] = {"model.safetensors": content}
    assert build().stdout.split() == ["auto", hashlib.sha256(content).hexdigest()]
    (tmp_path / "init_models").mkdir()
    here = save(timm.create_model("test_vit").state_dict())
    (tmp_path / "init_models/test_vit.r160_in1k.safetensors").write_bytes(here)
    assert build().stdout.split() == ["auto", hashlib.sha256(here).hexdigest()]


def test_official_names_of_encoders():
    from vfmtok.encoders.vfm import ENCODERS
    from vfmtok.weights.reading import OFFICIAL_FILES

    assert OFFICIAL_FILES.keys() <= ENCODERS.keys()
    assert OFFICIAL_FILES["dinov2_vitl14_reg"] == "dinov2_vitl14_reg4_pretrain.pth"


# --------------------------------------------------------------------------------------
# The average, or the last weights
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["published", "run"])
def test_which_weights_are_taken_may_be_chosen_and_is_logged(gpt, tmp_path, caplog, kind):
    last = {name: tensor + 1 for name, tensor in vfmtok.to_released(gpt).items()}
    path, part, overrides = tmp_path / "gpt.pt", "GPT-B", GPT_SHAPE
    torch.save({"model": last, "ema": vfmtok.to_released(gpt)}, path)
    if kind == "run":
        path, part, overrides = vfmtok.save_pretrained(gpt, tmp_path / "saved"), "generator", ()
        (path / "model.safetensors").rename(path / "ema.safetensors")
        save_file({name: tensor + 1 for name, tensor in gpt.state_dict().items()}, path / "model.safetensors")
        (path / "config.yaml").write_text(yaml.safe_dump({"generator": config_to_dict(gpt.config)}))
    taken = {}
    for prefer in ("ema", "model"):
        with caplog.at_level("INFO", logger="vfmtok"):
            taken[prefer] = vfmtok.from_pretrained(path, part, overrides=overrides, prefer=prefer).output.weight
        assert prefer in caplog.messages[-1] and str(path) in caplog.messages[-1]
    assert torch.equal(taken["ema"], gpt.output.weight) and torch.equal(taken["model"], gpt.output.weight + 1)


def test_without_the_weights_that_are_preferred_the_others_are_taken(gpt, tmp_path):
    torch.save({"model": vfmtok.to_released(gpt)}, tmp_path / "gpt.pt")
    assert_same(vfmtok.from_pretrained(tmp_path / "gpt.pt", "GPT-B", overrides=GPT_SHAPE), gpt)
    torch.save({"ema": vfmtok.to_released(gpt)}, tmp_path / "gpt.pt")
    assert_same(vfmtok.from_pretrained(tmp_path / "gpt.pt", "GPT-B", overrides=GPT_SHAPE, prefer="model"), gpt)
