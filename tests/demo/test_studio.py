import dataclasses
import itertools

import numpy as np
import pytest
import tiny_hita
import tiny_models
import torch
from image_makers import encoded, write_tree
from PIL import Image

import vfmtok
from vfmtok.demo import studio as room
from vfmtok.demo.studio import Studio
from vfmtok.errors import ConfigError, DataError, VFMTokError


@pytest.fixture(scope="module")
def studio():
    return Studio(tiny_models.tokenizer(), tiny_models.gpt(), ["apple", "bird", "cup"])


@pytest.fixture
def images(studio, tmp_path):
    write_tree(tmp_path, {"a.png": encoded(0, (40, 33), "PNG"), "b.jpg": encoded(1, (90, 200))})
    return [room.tokenize(studio, tmp_path / name) for name in ("a.png", "b.jpg")]


def test_samples_are_those_of_generate(studio):
    settings = {"top_k": 5, "top_p": 0.9, "temperature": 0.8, "seed": 3}
    pictures, about = room.sample(studio, 2, 3, cfg_scale=1.7, **settings)
    ids = vfmtok.generate(studio.generator, torch.full((3,), 2), cfg_scale=1.7, **settings)
    expected = studio.tokenizer.decode_to_uint8(ids, 32).numpy()
    for picture, pixels in zip(pictures, expected, strict=True):
        assert (np.array(picture)[::8, ::8] == pixels).all()  # enlarged 8 times
    assert about.startswith("3 x cup, CFG 1.7, seed 3")
    with pytest.raises(VFMTokError, match="temperature"):
        room.sample(studio, 0, 1, temperature=0)


def test_a_rar_is_sampled_with_its_own_settings(studio):
    """What is not set stands at the published evaluation's: guidance that rises with a power of the cosine."""
    sizes = {"n_layer": 1, "n_head": 2, "dim": 32, "ffn_hidden": 64}
    torch.manual_seed(0)
    rar = vfmtok.RAR(vfmtok.rar_config("RAR-B", vocab_size=64, num_tokens=16, num_classes=3, **sizes)).eval()
    pictures, about = room.sample(Studio(studio.tokenizer, rar, None), 1, 2, seed=3)
    published = {"cfg_scale": 16.0, "cfg_schedule": "power-cosine", "cfg_power": 2.75}
    ids = vfmtok.generate(rar, torch.full((2,), 1), seed=3, **published)
    expected = studio.tokenizer.decode_to_uint8(ids, 32).numpy()
    assert all((np.array(p)[::8, ::8] == e).all() for p, e in zip(pictures, expected, strict=True))
    assert "CFG 16 power-cosine 2.75" in about


def test_classes_without_names_have_numbers(studio):
    assert Studio(studio.tokenizer, studio.generator, None).class_names() == ["class 0", "class 1", "class 2"]
    assert Studio(studio.tokenizer, None, None).class_names() == []


def test_an_image_is_tokenized_as_the_evaluation_does(studio, images, tmp_path):
    found = images[1]
    ids = torch.from_numpy(found.code)
    assert (studio.tokenizer.decode_to_uint8(ids[None], 32)[0].numpy() == found.decoded).all()
    error = np.square(found.crop.astype(float) - found.decoded).mean()
    assert found.psnr == pytest.approx(10 * np.log10(255**2 / error))
    (tmp_path / "bad.png").write_bytes(b"no image")
    for name in ("bad.png", "absent.png"):
        with pytest.raises(DataError):
            room.tokenize(studio, tmp_path / name)


def test_mixing_takes_each_region_from_its_image(studio, images):
    one, other = images
    none = np.zeros((4, 4), bool)
    assert (room.mix(studio, one, other, none) == one.decoded).all()
    assert (room.mix(studio, one, other, ~none) == other.decoded).all()
    mask = room.pattern("scattered", (4, 4), 0.5)
    ids = [other.code[k] if mask[k // 4, k % 4] else one.code[k] for k in range(16)]
    expected = studio.tokenizer.decode_to_uint8(torch.tensor([ids]), 32)[0].numpy()
    assert (room.mix(studio, one, other, mask) == expected).all()


@pytest.mark.parametrize("name", room.PATTERNS)
def test_patterns_have_their_share_and_grow_with_it(name):
    shares = np.linspace(0, 1, 9)
    masks = [room.pattern(name, (8, 8), share) for share in shares]
    assert [mask.sum() for mask in masks] == [round(share * 64) for share in shares]
    assert all((small <= large).all() for small, large in itertools.pairwise(masks))


def test_patterns_are_what_they_are_called():
    right, lower = room.pattern("left and right", (4, 4), 0.25), room.pattern("top and bottom", (4, 4), 0.5)
    assert right[:, 3].all() and right.sum() == 4 and lower[2:].all() and lower.sum() == 8
    board = room.pattern("checkerboard", (4, 4), 0.5)
    assert (board[1:] != board[:-1]).all() and (board[:, 1:] != board[:, :-1]).all()
    assert (room.pattern("centre", (4, 4), 0.25)[1:3, 1:3]).all()
    with pytest.raises(ConfigError, match="no pattern 'spiral'"):
        room.pattern("spiral", (4, 4), 0.5)


def test_a_click_meets_the_cell_that_is_drawn_there(studio, images):
    """A token's frame is what changes in the picture when it is chosen; its cell answers to clicks inside."""
    plain = np.array(room.draw_ids(studio, images[0]))
    for token in range(16):
        framed = np.array(room.draw_ids(studio, images[0], [token]))
        rows, columns = np.nonzero((framed != plain).any(-1))
        for x in (columns.min(), columns.mean(), columns.max()):
            for y in (rows.min(), rows.mean(), rows.max()):
                assert room.token_at(studio, x, y) == token
    assert room.token_at(studio, 10_000, -3) == 3


def test_the_choice_shows_both_images(studio, images):
    mask = room.pattern("top and bottom", (4, 4), 0.5)
    mixed = np.array(room.draw_choice(studio, *images, mask)).astype(int)
    for rows, image in ((slice(0, 256), images[0]), (slice(256, 512), images[1])):
        whole = np.array(Image.fromarray(image.crop).resize((512, 512), Image.Resampling.BICUBIC)).astype(int)
        assert np.median(np.abs(mixed - whole)[rows]) == 0  # but for the frames


def test_equal_codes_have_equal_colours_and_near_ones_like_colours(studio):
    directions = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).repeat_interleave(16, 0)
    near = directions + 0.01 * torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    colours = room._code_colours(near).astype(int).reshape(4, 16, 3)
    within = np.ptp(colours, axis=1).max()
    between = min(np.abs(a.mean(0) - b.mean(0)).max() for a, b in itertools.combinations(colours, 2))
    assert between > 40 and within <= 45 and colours.min() >= 90
    assert room._code_colours(torch.randn(5, 2)).shape == (5, 3)


def test_a_tokenizer_without_a_codebook_is_shown_too(tmp_path):
    levels = ("quantizer.kind=fsq", "quantizer.levels=[4,4,4]", "quantizer.code_dim=3")
    studio = Studio(tiny_models.tokenizer(*levels), None, None)
    write_tree(tmp_path, {"a.png": encoded(0, (40, 33), "PNG"), "b.png": encoded(1, (40, 33), "PNG")})
    one, other = (room.tokenize(studio, tmp_path / name) for name in ("a.png", "b.png"))
    picture = np.array(room.draw_ids(studio, one))
    cells = [picture[128 * (token // 4) + 4, 128 * (token % 4) + 4] for token in range(16)]
    for a, b in itertools.combinations(range(16), 2):
        assert (cells[a] == cells[b]).all() == (one.code[a] == one.code[b])  # each of the 64 codes has a colour
    assert (room.mix(studio, one, other, np.ones((4, 4), bool)) == other.decoded).all()


def test_choosing_tokens(studio, images):
    assert room.parse_tokens(studio, "3, 0 15,3") == [3, 0, 15]
    for text in ("", "16", "-1", "a", "0 1 2 3 4 5 6 7 8"):
        with pytest.raises(ConfigError, match="name 1 to 8 tokens, each from 0 to 15"):
            room.parse_tokens(studio, text)
    assert room.toggle([1, 2], 2) == [1] and room.toggle([1], 2) == [1, 2]
    assert room.toggle(range(8), 9) == [1, 2, 3, 4, 5, 6, 7, 9]
    few, many = room.draw_points(studio, images[0], [3]), room.draw_points(studio, images[0], [3, 4])
    assert few.size == many.size and few.tobytes() != many.tobytes()
    assert (
        room.draw_points(Studio(tiny_models.tokenizer("sampler.attention=windowed"), None, None), images[0], [3])
        is None
    )


def test_examples_are_images(studio, tmp_path):
    paths = room.write_examples(tmp_path)
    assert len({tuple(room.tokenize(studio, path).code) for path in paths}) == len(paths) == 4


def test_small_images_are_enlarged_by_whole_factors():
    for side, shown in ((32, 256), (64, 256), (100, 300), (336, 336)):
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        large = np.array(room.enlarged(pixels))
        factor = shown // side
        assert large.shape == (shown, shown, 3) and (large == pixels.repeat(factor, 0).repeat(factor, 1)).all()


def test_finite_scalar_quantization_has_its_page_too(tmp_path):
    settings = ("kind=fsq", "levels=[4,4,2,2]", "codebook_size=64", "code_dim=4")
    studio = Studio(tiny_models.tokenizer(*(f"quantizer.{setting}" for setting in settings)), tiny_models.gpt(), None)
    write_tree(tmp_path, {"a.png": encoded(0), "b.png": encoded(1)})
    pair = [room.tokenize(studio, tmp_path / name) for name in ("a.png", "b.png")]
    assert room.draw_ids(studio, pair[0], [3]).size == (512, 512)
    assert room.mix(studio, *pair, room.pattern("centre", (4, 4), 0.5)).shape == (32, 32, 3)
    assert len(room.sample(studio, 1, 2)[0]) == 2


def test_the_page_is_told_no_path(studio, tmp_path):
    with pytest.raises(DataError, match=r"^cannot read gone.png: No such file") as error:
        room.tokenize(studio, tmp_path / "gone.png")
    assert str(tmp_path) not in str(error.value)


def test_both_kinds_of_tokens(tmp_path):
    """Hita's: the style is the holistic tokens', and these are shown below the grid."""
    studio = Studio(tiny_hita.tokenizer(), tiny_hita.gpt(), None)
    one, other = (room.tokenize(studio, path) for path in room.write_examples(tmp_path, 2))
    assert studio.has_holistic and studio.grid == (4, 4)
    none = np.zeros((4, 4), bool)
    assert (room.mix(studio, one, other, none) == one.decoded).all()
    assert (room.mix(studio, one, other, ~none, "second") == other.decoded).all()
    styled = np.concatenate([other.code[:6], one.code[6:]])
    assert (room.mix(studio, one, other, none, "second") == room.decode(studio, styled[None])[0]).all()
    picture = room.draw_ids(studio, one)
    assert picture.size[0] == 512 and picture.size[1] > 512 + 128
    changed = dataclasses.replace(one, code=np.concatenate([(one.code[:6] + 1) % 32, one.code[6:]]))
    again = room.draw_ids(studio, changed)
    assert picture.crop((0, 0, 512, 512)).tobytes() == again.crop((0, 0, 512, 512)).tobytes() != again.tobytes()


def test_completing_an_image(tmp_path):
    studio = Studio(tiny_hita.tokenizer(), tiny_hita.gpt(), None)
    image = room.tokenize(studio, room.write_examples(tmp_path, 2)[0])
    pictures, about = room.complete(studio, image, 1, "bottom", 0.5, 2, seed=3, cfg_scale=1.5)
    again, _ = room.complete(studio, image, 1, "bottom", 0.5, 2, seed=3, cfg_scale=1.5)
    assert len(pictures) == 3 and "CFG 1.5, seed 3" in about
    assert all((np.array(a) == np.array(b)).all() for a, b in zip(pictures, again, strict=True))
    assert (np.array(pictures[0])[-1] == 128).all() and not (np.array(pictures[1]) == np.array(pictures[2])).all()
    with pytest.raises(ConfigError, match="row by row"):
        room.complete(studio, image, None, "top", 0.5, 1)


@pytest.mark.parametrize("models", ["vfmtok", "hita", "tokenizer alone"])
def test_the_page_offers_what_the_models_can(studio, tmp_path, models):
    pytest.importorskip("gradio")
    from vfmtok.demo import page

    if models != "vfmtok":
        studio = Studio(tiny_hita.tokenizer(), tiny_hita.gpt() if models == "hita" else None, None)
    built = page.build(studio, room.write_examples(tmp_path, 2))
    names = {block.elem_id: block for block in built.blocks.values() if getattr(block, "elem_id", None)}
    assert ("completions" in names) == ("samples" in names) == (models != "tokenizer alone")
    assert names["style"].visible == (models != "vfmtok")
    if models == "hita":
        assert [value for _, value in names["part"].choices] == ["bottom"]  # row by row
