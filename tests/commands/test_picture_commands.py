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


def test_completions_do_not_depend_on_the_batch(models, shown, tmp_path, capsys):
    """Three completions of two images, one, four or all of a pass."""
    folder, _, _ = models
    command = ["inpaint", str(folder / "images"), "--gpt", str(folder / "gpt"), "--vq-ckpt", str(folder / "tok")]
    command += ["--n", "3", "--out", str(tmp_path / "out.png")]
    found = []
    for batch in (1, 4, 16):
        assert main([*command, "--batch-size", str(batch)]) == 0, capsys.readouterr().err
        found.append(np.stack([shown[f"drawn {number}"] for number in (1, 2, 3)]).astype(int))
    assert np.abs(found[0] - found[2]).max() <= 1 and np.abs(found[1] - found[2]).max() <= 1
    assert len(np.unique(found[0].reshape(6, -1), axis=0)) == 6


@pytest.fixture(scope="module")
def any_order(tmp_path_factory, root):
    """A tokenizer of 4x4 tokens and a RAR, which draws in any order."""
    folder = tmp_path_factory.mktemp("any_order")
    torch.manual_seed(0)
    tokenizer = vfmtok.build_tokenizer(
        vfmtok.load_config(root / "configs/tiny.yaml", ["encoder.weights=random"])
    ).eval()
    sizes = {
        "n_layer": 2,
        "n_head": 2,
        "dim": 32,
        "ffn_hidden": 64,
        "vocab_size": 64,
        "num_tokens": 16,
        "num_classes": 3,
    }
    rar = vfmtok.RAR(vfmtok.rar_config("RAR-B", **sizes)).eval()
    torch.nn.init.normal_(rar.output.weight, std=0.5)
    vfmtok.save_pretrained(tokenizer, folder / "tok")
    vfmtok.save_pretrained(rar, folder / "gpt")
    write_tree(folder / "images", {"a.png": encoded(0, (40, 33), "PNG"), "b.png": encoded(1, (90, 200), "PNG")})
    return folder, tokenizer, rar


CELLS = np.array([[0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)


@pytest.mark.parametrize("form", ["a px for each token", "pixels"])
def test_a_mask_of_free_form(any_order, shown, tmp_path, capsys, form):
    """White in one corner of a cell is enough; everything else keeps its tokens."""
    folder, tokenizer, rar = any_order
    mask = np.where(CELLS, 255, 100)  # dark grey is black
    if form == "pixels":
        mask = np.full((32, 32), 100)
        for row, column in np.argwhere(CELLS):
            mask[8 * row + 7, 8 * column + 7] = 255
    Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "mask.png")
    command = ["inpaint", str(folder / "images"), "--gpt", str(folder / "gpt"), "--vq-ckpt", str(folder / "tok")]
    command += ["--mask", str(tmp_path / "mask.png"), "--n", "2", "--seed", "3", "--out", str(tmp_path / "out.png")]
    assert main(command) == 0, capsys.readouterr().err
    assert "12 of 16 tokens kept" in capsys.readouterr().out
    given = without_region(crops(folder), torch.from_numpy(CELLS))
    hidden = np.kron(CELLS, np.ones((8, 8), bool))
    assert (shown["given"][:, hidden] == 128).all()
    assert np.array_equal(shown["given"][:, ~hidden], shown["image"][:, ~hidden])
    with torch.no_grad():
        ids = tokenizer.encode(given).ids.repeat_interleave(2, dim=0)  # (4,16)
        labels, kept = torch.full((4,), rar.null_class), torch.from_numpy(~CELLS.ravel())
        drawn = vfmtok.generate(rar, labels, known=(ids, kept), seed=3)
        pixels = tokenizer.decode_to_uint8(drawn, 32).numpy()
    assert torch.equal(drawn[:, kept], ids[:, kept]) and (drawn[:, ~kept] != ids[:, ~kept]).any()
    for number in range(2):
        assert np.array_equal(shown[f"drawn {number + 1}"], pixels[number::2])


def test_masks_that_cannot_be_used_are_one_line(any_order, tmp_path, monkeypatch, capsys):
    folder, _, _ = any_order
    monkeypatch.chdir(tmp_path)
    for name, side, value in (("large", 64, 255), ("black", 32, 0), ("good", 4, 255)):
        Image.new("L", (side, side), value).save(f"{name}.png")
    (tmp_path / "text.png").write_text("no picture")
    command = ["inpaint", str(folder / "images"), "--gpt", str(folder / "gpt"), "--vq-ckpt", str(folder / "tok")]
    for flags, says in (
        ("--mask large.png", "large.png is 64x64 px: it must be 32x32, as the images are cut, or 4x4"),
        ("--mask black.png", "black.png is all black: what is white is redrawn"),
        ("--mask text.png", "cannot read text.png"),
        ("--mask absent.png", "cannot read absent.png: No such file"),
        ("--mask good.png --part top", "leave --part and --share out"),
        ("--part top --share 0", "no token is to be redrawn"),
    ):
        assert main([*command, *flags.split(), "--out", "out.png"]) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1, err
    assert not (tmp_path / "out.png").exists()


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


@pytest.mark.parametrize("at_once", [1, 16])
def test_style(models, shown, tmp_path, capsys, monkeypatch, at_once):
    """One image of a pass, or all."""
    monkeypatch.setattr("vfmtok.commands.style.AT_ONCE", at_once)
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
