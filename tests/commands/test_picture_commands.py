"""`vfmtok inpaint` and `vfmtok style`: the pictures are what the functions make of the same images."""

import numpy as np
import pytest
import tiny_hita
import torch
from image_makers import encoded, write_tree
from PIL import Image

import vfmtok
from vfmtok.cli import main
from vfmtok.data.transforms import EvaluationCrop, to_unit_range
from vfmtok.errors import ConfigError
from vfmtok.generators.inpainting import inpaint
from vfmtok.pictures import rows
from vfmtok.tokenizers.editing import kept_tokens, region, without_region


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tokenizer, gpt = tiny_hita.tokenizer(), tiny_hita.gpt()
    vfmtok.save_pretrained(tokenizer, folder / "tok")
    vfmtok.save_pretrained(gpt, folder / "gpt")
    write_tree(folder / "images", {"a.png": encoded(0, (40, 33), "PNG"), "b.png": encoded(1, (90, 200), "PNG")})
    return folder, tokenizer, gpt


@pytest.fixture
def shown(monkeypatch):
    """The columns that a command draws."""
    found = {}

    def draw(columns, title):
        found.update(columns)
        return rows.draw_columns(columns, title)

    monkeypatch.setattr("vfmtok.commands.inpaint.draw_columns", draw)
    monkeypatch.setattr("vfmtok.commands.style.draw_columns", draw)
    return found


def crops(folder):
    return to_unit_range(
        torch.stack([EvaluationCrop(32)((folder / "images" / name).read_bytes()) for name in ("a.png", "b.png")])
    )


def test_inpaint(models, shown, tmp_path, capsys):
    folder, tokenizer, gpt = models
    command = ["inpaint", str(folder / "images"), "--gpt", str(folder / "gpt"), "--vq-ckpt", str(folder / "tok")]
    command += ["--class-of", "1", "--n", "3", "--share", "0.25", "--cfg-scale", "1.7", "--seed", "5"]
    assert main([*command, "--out", str(tmp_path / "out.png")]) == 0, capsys.readouterr().err
    redrawn = torch.from_numpy(region("bottom", (4, 4), 0.25))
    given = without_region(crops(folder), redrawn)
    with torch.no_grad():
        ids = tokenizer.encode(given).ids.repeat_interleave(3, dim=0)
    drawn = inpaint(
        gpt, ids, kept_tokens(tokenizer.code, redrawn), torch.ones(6, dtype=torch.long), seed=5, cfg_scale=1.7
    )
    assert torch.equal(drawn[:, :18], ids[:, :18]) and (drawn[:, 18:] != ids[:, 18:]).any()
    pixels = tokenizer.decode_to_uint8(drawn, 32).numpy()
    assert list(shown) == ["image", "given", "drawn 1", "drawn 2", "drawn 3"]
    for number in range(3):
        assert np.array_equal(shown[f"drawn {number + 1}"], pixels[number::3])
    assert (shown["given"][:, 24:] == 128).all() and not np.array_equal(shown["image"], shown["given"])
    assert Image.open(tmp_path / "out.png").size[0] > 5 * 32


def test_a_prefix_of_holistic_ids_alone(models):
    """All patches are redrawn, and nothing of the holistic ids changes."""
    _, tokenizer, gpt = models
    ids = torch.randint(32, (2, 22))
    kept = kept_tokens(tokenizer.code, torch.ones(4, 4, dtype=torch.bool))
    labels = torch.full((2,), gpt.null_class)
    drawn = inpaint(gpt, ids, kept, labels, cfg_scale=1.0)
    assert torch.equal(drawn, vfmtok.generate(gpt, labels, prefix_ids=ids[:, :6], cfg_scale=1.0))
    with pytest.raises(ConfigError, match="row by row"):
        inpaint(gpt, ids, kept.flip(0), labels)


def test_style(models, shown, tmp_path, capsys):
    folder, tokenizer, _ = models
    images = [str(folder / "images" / name) for name in ("a.png", "b.png")]
    command = ["style", "--content", *images, "--style", images[1], "--vq-ckpt", str(folder / "tok")]
    assert main([*command, "--out", str(tmp_path / "out.png")]) == 0, capsys.readouterr().err
    one, other = crops(folder).split(1)
    expected = [vfmtok.transfer_style(tokenizer, image, other) for image in (one, other)]
    pixels = (torch.cat(expected) * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(shown["style 1"][1:], pixels)
    assert np.array_equal(shown["style 1"][2], shown["reconstruction"][2])  # in its own style


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("inpaint {images} --gpt {gpt} --vq-ckpt {tok} --part top", "row by row"),
        ("inpaint {images} --gpt {gpt} --vq-ckpt {tok} --class-of 0,1", "one class"),
        ("inpaint {images} --gpt {gpt} --vq-ckpt {tok} --share 2", "from 0 to 1"),
        ("inpaint {images}/absent.png --gpt {gpt} --vq-ckpt {tok}", "no image"),
        ("inpaint {images}/a.png --gpt {gpt} --vq-ckpt {tok} --out {images}/a.png", "is one of the images"),
        ("inpaint {images} --gpt {gpt} --vq-ckpt {tok} --out {images}/no/a.png", "cannot write"),
        ("style --content {images} --style {images} --vq-ckpt {tok} --out {images}/a.txt", "cannot write"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(models, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    paths = {name: models[0] / name for name in ("images", "gpt", "tok")}
    assert main(arguments.format(**paths).split()) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
