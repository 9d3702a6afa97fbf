"""The manifests of LlamaGen, Hita, RAR and VFMAE are their published tables, and the scripts take what they say."""

import pytest
import tiny_models

from vfmtok import cli
from vfmtok.commands import evaluation_flags as flags
from vfmtok.config import with_overrides
from vfmtok.generators.gpt.segments import HolisticSampling
from vfmtok.generators.rar.config import RARSampling
from vfmtok.pretrained.manifest import find_manifest, manifest_names
from vfmtok.pretrained.published import HITA, LLAMAGEN, PUBLISHED, VFMTOK, published_file, split_name

# LlamaGen: "guidance gFID sFID IS Pr Rc / the same without guidance"; "-" is not published.
LLAMAGEN_GPT = {
    "b-256": "2.0 5.46 - 193.6 - -",
    "l-256": "1.75 3.80 - 248.3 - -",
    "b-384": "2.0 6.09 7.24 182.5 0.85 0.42 / 32.2 11.84 39.9 0.57 0.61",
    "l-384": "2.0 3.07 6.09 256.1 0.83 0.52 / 19.1 8.67 64.3 0.61 0.67",
    "xl-384": "1.75 2.62 - 245 - -",
    "xxl-384": "1.75 2.34 6.00 253.9 0.81 0.60 / 14.6 8.69 86.3 0.63 0.68",
    "3b-384": "1.65 2.18 5.97 263.3 0.82 0.58 / 9.38 8.24 112.9 0.69 0.67",
}
LLAMAGEN_RFID = {("vq16", 256): 2.19, ("vq16", 336): 1.21, ("vq16", 384): 0.94, ("vq16", 512): 0.70, ("vq8", 256): 0.59}
# Hita: FID IS with guidance / without.
HITA_V = {
    "b-50": "5.85 212.3", "b-300": "4.33 238.9", "l-50": "3.75 262.1", "l-300": "2.86 267.3",
    "xl-50": "2.98 253.4", "xxl-50": "2.70 274.8", "2b-50": "2.59 281.9",
}  # fmt: skip
HITA_U = {
    "b-50": "4.21 229.0 / 8.32 108.5", "b-250": "3.49 237.5 / 5.19 138.9",
    "l-50": "2.97 273.3 / 3.96 151.8", "l-250": "2.44 274.6 / 2.46 188.9",
    "xl-50": "2.40 276.3 / 2.66 178.9", "xl-100": "2.16 275.3 / 2.21 195.8",
    "xxl-50": "2.07 273.8 / 2.21 196.0", "xxl-100": "2.01 276.4 / 1.84 217.2",
    "2b-50": "1.93 286.0 / 1.97 208.6", "2b-100": "1.82 282.9 / 1.69 233.0",
}  # fmt: skip
RAR = {
    "l-ultra": "1.33 5.72 317.4 0.78 0.65 / 2.01 5.34 211.1 0.78 0.63",
    "l": "1.44 6.03 312.8 0.78 0.66 / 2.02 5.51 210.4 0.79 0.63",
    "xl": "1.38 5.86 310.2 0.78 0.65 / 1.74 5.33 233.0 0.80 0.63",
    "xxl": "1.36 5.86 301.3 0.78 0.66 / 1.65 5.55 253.7 0.80 0.63",
}


def rows(stem: str, table: dict[str, str], epochs: bool = False) -> dict[str, str]:
    """manifest -> what it has to say."""
    found = {}
    for row, text in table.items():
        guided, _, plain = text.partition(" / ")
        found |= {f"{stem}-{row}{'e' if epochs else ''}-cfg": guided}
        found |= {f"{stem}-{row}{'e' if epochs else ''}-no-cfg": plain} if plain else {}
    return found


GENERATION = {
    **rows("llamagen-gpt", LLAMAGEN_GPT),
    **rows("hita-v-gpt", HITA_V, epochs=True),
    **rows("hita-u-gpt", HITA_U, epochs=True),
    **rows("rar", RAR),
    "ditdh-xl-80e-no-cfg": "3.29 6.17 176.5 0.75 0.64",
    "ditdh-xl-800e-no-cfg": "1.65 5.78 240.9 0.76 0.67",
}
RECONSTRUCTION = [f"llamagen-tokenizer-{name}-{size}" for name, size in LLAMAGEN_RFID] + [
    "hita-tokenizer-v",
    "hita-tokenizer-u",
    "vfmae-tokenizer",
    "vfmvae-tokenizer",
]


def test_every_row_has_a_manifest():
    stems = ("llamagen-", "hita-", "rar-", "vfmae-", "ditdh-", "vfmvae-")
    ours = [name for name in manifest_names() if name.startswith(stems)]
    assert ours == sorted([*GENERATION, *RECONSTRUCTION])


def test_the_numbers_of_generations():
    for name, text in GENERATION.items():
        manifest, guided = find_manifest(name), not name.endswith("-no-cfg")
        words = text.split()
        if name.startswith("llamagen") and guided:
            assert manifest.sampling.cfg_scale == float(words.pop(0))
        assert (manifest.sampling.cfg_scale == 1) == (not guided)
        names = ("gFID", "IS") if len(words) == 2 else ("gFID", "sFID", "IS", "Pr", "Rc")
        published = {number: float(word) for number, word in zip(names, words, strict=True) if word != "-"}
        assert {number.name: number.value for number in manifest.expected} == published, name
        others = {number.name for number in manifest.expected if not number.binding}
        assert others == ({"IS"} if name == "llamagen-gpt-xl-384-cfg" else set())


def test_the_numbers_of_reconstructions():
    for (name, size), rfid in LLAMAGEN_RFID.items():
        manifest = find_manifest(f"llamagen-tokenizer-{name}-{size}")
        assert (manifest.expected[0].name, manifest.expected[0].value) == ("rFID", rfid)
        assert manifest.rfid_against == "dataset" and manifest.resize == "bicubic"
        row = published_file(*split_name(manifest.tokenizer))
        assert with_overrides(row.config, manifest.tokenizer_settings).image_size == size
    for kind, rfid, ris in (("v", 1.03, 198.5), ("u", 0.57, 221.8)):
        manifest = find_manifest(f"hita-tokenizer-{kind}")
        assert [number.value for number in manifest.expected[:2]] == [rfid, ris]
        assert manifest.rfid_against == "originals" and manifest.resize == "pillow"
    manifest = find_manifest("vfmae-tokenizer")
    published = {"rFID": 0.29, "rIS": 225.6, "PSNR": 25.5, "SSIM (data range 2)": 0.82}
    assert {number.name: number.value for number in manifest.expected} == published
    row = published_file(*split_name(manifest.tokenizer))
    assert row.config.image_size == manifest.image_size and row.config.kind == "vfmae"
    manifest = find_manifest("vfmvae-tokenizer")
    published = {"rFID": 0.52, "rIS": 214.1, "LPIPS": 0.221, "PSNR": 22.99, "SSIM (Gaussian)": 0.593}
    assert {number.name: number.value for number in manifest.expected} == published
    row = published_file(*split_name(manifest.tokenizer))
    assert row.config.kind == "vfm_vae" and manifest.protocol == "vfm-vae"


def test_what_is_sampled_is_a_part_on_its_own_tokenizer():
    for name in GENERATION:
        manifest = find_manifest(name)
        repository, part = split_name(manifest.gpt)
        row = published_file(repository, part)
        named, tokenizer = split_name(manifest.tokenizer)
        assert (row.size, repository, row.tokenizer) == (manifest.gpt_model, named, tokenizer or "tokenizer")
        settings = tuple(s for s in row.tokenizer_settings if s != "image_size=256")
        assert (settings, row.prefer) == (manifest.tokenizer_settings, manifest.prefer), name
        words = name.split("-")
        assert row.size.lower().split("-")[1] in words and (repository == HITA) == name.startswith("hita")
        if repository == HITA:
            assert f"{words[-3] if words[-2] == 'no' else words[-2]}" in part
            assert ("ultra" in part) == (words[1] == "u")
            assert manifest.sampling.settings == ("published_boundary=true",)
            assert [variant.settings for variant in manifest.variants] == [("published_boundary=false",)]
        if repository == LLAMAGEN:
            assert words[3] in part
        if name.startswith("ditdh"):
            assert part == f"DiTDH-XL-{words[2]}" and row.tokenizer == "vfmae" and manifest.latent_stats is not None
        if name.startswith("rar"):
            assert repository == VFMTOK and ("ultra" in part) == ("ultra" in words)
    assert {find_manifest(name).gpt for name in GENERATION} == {
        f"{repository}:{part}"
        for repository in PUBLISHED
        for part, row in PUBLISHED[repository].parts.items()
        if row.section == "generator" and (repository, row.size[:3]) != (VFMTOK, "GPT")
    }


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("llamagen-gpt-b-384-cfg", {"cfg_scale": 2.0, "cfg_schedule": "constant", "top_k": 0}),
        ("hita-u-gpt-b-250e-no-cfg", {"published_boundary": True}),
        ("rar-xl-cfg", {"cfg_schedule": "power-cosine", "cfg_power": 1.0}),
        ("rar-xl-no-cfg", {"temperature": 1.0}),
        ("llamagen-tokenizer-vq8-256", None),
        ("hita-tokenizer-u", None),
        ("vfmae-tokenizer", None),
        ("vfmvae-tokenizer", None),
    ],
)
def test_the_scripts_take_what_a_dry_run_tells(name, sampling, capsys, monkeypatch):
    assert cli.main(["reproduce", name, "--dry-run"]) == 0
    told = capsys.readouterr().out.splitlines()[-1].split("as         python ")[1].split()
    parser = {"vqgan_test.py": flags.reconstruction_parser, "test_net.py": flags.generation_parser}[told[0]]()
    args, manifest = parser.parse_args(told[1:]), find_manifest(name)
    assert args.vq_ckpt == manifest.tokenizer and args.prefer == manifest.prefer
    if sampling is None:
        assert (args.resize, args.protocol) == (manifest.resize, manifest.protocol)
        assert args.reference == ("DATA" if manifest.rfid_against == "dataset" else None)
        return
    family = {"hita": HolisticSampling, "rar-": RARSampling}.get(name[:4])
    generator = tiny_models.gpt()
    if family is not None:
        monkeypatch.setattr(type(generator), "sampling", family)
    samples = flags.samples_of(args, generator)
    assert {field: getattr(samples.sampling, field) for field in sampling if field != "cfg_scale"} == {
        field: value for field, value in sampling.items() if field != "cfg_scale"
    }
    assert float(args.cfg_scale) == manifest.sampling.cfg_scale
