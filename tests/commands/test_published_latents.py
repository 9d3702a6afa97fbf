"""Latents of LightningDiT's and REG's programs: written here as theirs write them, read by ours, and back."""

import json
from pathlib import Path

import continuous_family
import numpy as np
import pytest
import safetensors.torch
import torch
from photographs import jpeg, photographs
from PIL import Image

import vfmtok
from vfmtok import Latents, cli, distributed
from vfmtok.data.latent_cache import LatentCache
from vfmtok.data.published_latents import read_statistics
from vfmtok.data.records import Record, RecordDataset, write_records
from vfmtok.data.transforms import EvaluationCrop
from vfmtok.errors import DataError, WeightsError

FAMILIES = continuous_family.FAMILIES

CODE, COUNT = Latents((4, 4, 4)), 11


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    vfmtok.save_pretrained(continuous_family.tokenizer(), folder / "plain")
    vfmtok.save_pretrained(continuous_family.tokenizer(True), folder / "vae")
    return folder


def random_latents(seed: int, count: int = COUNT) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(size=(count, 4, 4, 4))
    return torch.from_numpy(np.arange(4)[:, None, None] + 0.5 * values).float()


LABELS = torch.tensor([0, 0, 1, 2, 2, 1, 0, 2, 1, 1, 0])


def write_shards(root: Path, sizes: tuple[int, ...] = (5, 2, 4), flip: bool = True, statistics: bool = True) -> None:
    """As LightningDiT's extraction leaves them, in several shards."""
    root.mkdir(parents=True)
    plain, mirrored, start = random_latents(0), random_latents(1), 0
    for shard, size in enumerate(sizes):
        rows = slice(start, start + size)
        tensors = {"latents": plain[rows], "labels": LABELS[rows]}
        if flip:
            tensors["latents_flip"] = mirrored[rows]
        safetensors.torch.save_file(tensors, root / f"latents_rank00_shard{shard:03d}.safetensors")
        start += size
    if statistics:
        mean, std = plain.mean((0, 2, 3), keepdim=True), plain.std((0, 2, 3), keepdim=True)
        torch.save({"mean": mean, "std": std}, root / "latents_stats.pt")


def write_reg(root: Path) -> tuple[np.ndarray, list[int]]:
    """As REG's extraction leaves it; moments (N,2C,h,w) and labels in the order of names."""
    folder, listed = root / "vae_latents", []
    moments = torch.cat([random_latents(2), 0.1 + random_latents(3).abs()], 1).numpy()
    names = [f"n{label:04d}/n{label:04d}_{50 - i}" for i, label in enumerate(LABELS.tolist())]
    for name, label, values in zip(names, LABELS.tolist(), moments, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", values)
        listed.append([f"{name}.npy", label])
    (folder / "dataset.json").write_text(json.dumps({"labels": listed}))
    order = sorted(range(COUNT), key=lambda i: names[i])
    return moments[order], LABELS[order].tolist()


def imported(models: Path, out: Path, *arguments: object, tokenizer: str = "vae") -> int:
    command = ["import-codes", str(out), "--vq-ckpt", str(models / tokenizer)]
    return cli.main([*command, "--latent-dtype", "float32", *map(str, arguments)])


def test_shards_become_two_views(models, tmp_path, capsys):
    write_shards(tmp_path / "shards")
    assert imported(models, tmp_path / "cache", "--lightningdit", tmp_path / "shards") == 0
    cache = LatentCache(tmp_path / "cache")
    stored = np.load(tmp_path / "cache/latents.npy")
    assert np.array_equal(stored[:, 0, 0], random_latents(0)) and np.array_equal(stored[:, 1, 0], random_latents(1))
    assert cache.labels.tolist() == LABELS.tolist() and cache.metadata["posterior"] == "sample"
    published = torch.load(tmp_path / "shards/latents_stats.pt")
    assert torch.equal(cache.statistics.std, published["std"][0]) and cache.statistics.count == 0
    assert "(published)" in capsys.readouterr().out and (tmp_path / "cache/contact_sheet.png").exists()
    assert imported(models, tmp_path / "cache", "--lightningdit", tmp_path / "shards") == 0
    assert "already complete" in capsys.readouterr().out
    more = ("--stats-per", "channel")
    assert imported(models, tmp_path / "cache", "--lightningdit", tmp_path / "shards", *more) == 0
    both = torch.cat([random_latents(0), random_latents(1)])  # measured of all views, the published of one
    measured = LatentCache(tmp_path / "cache").statistics
    torch.testing.assert_close(measured.std.flatten(), both.std((0, 2, 3)), rtol=1e-5, atol=0)
    assert measured.count == 2 * COUNT


def test_shards_without_mirror_images_and_statistics(models, tmp_path):
    write_shards(tmp_path / "shards", flip=False, statistics=False)
    out = tmp_path / "cache"
    assert imported(models, out, "--lightningdit", tmp_path / "shards", "--stats-per", "position") == 0
    cache, values = LatentCache(out), random_latents(0).double()
    assert cache.num_views == 1 and cache.metadata["statistics"]["source"] == "measured"
    torch.testing.assert_close(cache.statistics.mean.double(), values.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cache.statistics.std.double(), values.std(0), rtol=1e-5, atol=1e-6)


def test_moments_of_reg(models, tmp_path):
    moments, labels = write_reg(tmp_path / "reg")
    for place in ("reg", "reg/vae_latents"):
        out = tmp_path / f"cache_{len(place)}"
        assert imported(models, out, "--reg", tmp_path / place) == 0
        cache = LatentCache(out)
        assert cache.has_moments and cache.num_views == 1 and cache.labels.tolist() == labels
        assert np.array_equal(np.load(out / "latents.npy").reshape(COUNT, 8, 4, 4), moments)


@pytest.fixture(scope="module")
def own(models, tmp_path_factory) -> Path:
    """Images and caches of ours: a sample and its mirror image; moments of the centre."""
    folder = tmp_path_factory.mktemp("own")
    images = [photo.resize((24, 20)) for photo in photographs()]
    records = [Record(jpeg(images[i % 8]), i % 3, f"{i}.jpg") for i in range(COUNT)]
    write_records(folder / "lmdb", records, classes=["a", "b", "c"])
    for name, more in (("sample", []), ("moments", ["--views", "center", "--posterior", "moments"])):
        command = ["codes", str(folder / "lmdb"), str(folder / name), "--vq-ckpt", str(models / "vae")]
        assert cli.main([*command, "--num-workers", "0", "--latent-dtype", "float32", *more]) == 0
    return folder


@pytest.mark.parametrize(("name", "kind"), [("sample", "lightningdit"), ("moments", "reg")])
def test_what_is_exported_is_imported_the_same(models, own, tmp_path, monkeypatch, name, kind):
    monkeypatch.setattr("vfmtok.data.latent_export.SHARD", 4)
    assert cli.main(["export-codes", str(own / name), str(tmp_path / "out"), "--to", kind]) == 0
    assert imported(models, tmp_path / "back", f"--{kind}", tmp_path / "out") == 0
    there, back = LatentCache(own / name), LatentCache(tmp_path / "back")
    order = np.argsort(there.labels.numpy(), kind="stable") if kind == "reg" else np.arange(COUNT)  # of names
    assert np.array_equal(back.rows(np.arange(COUNT)), there.rows(order))
    assert torch.equal(back.labels, there.labels[torch.from_numpy(order)])
    assert torch.equal(back.statistics.mean, there.statistics.mean)
    assert torch.equal(back.statistics.std, there.statistics.std)
    assert [back.metadata[key] for key in ("views", "posterior")] == [
        there.metadata[key] for key in ("views", "posterior")
    ]


def test_what_lightningdit_reads(own, tmp_path, monkeypatch):
    monkeypatch.setattr("vfmtok.data.latent_export.SHARD", 4)
    assert cli.main(["export-codes", str(own / "sample"), str(tmp_path / "out"), "--to", "lightningdit"]) == 0
    shards = [safetensors.torch.load_file(file) for file in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert [len(shard["labels"]) for shard in shards] == [4, 4, 3]
    stored = np.load(own / "sample/latents.npy")
    for view, key in enumerate(("latents", "latents_flip")):
        found = torch.cat([shard[key] for shard in shards])
        assert found.dtype == torch.float32 and np.array_equal(found, stored[:, view, 0])
    statistics = torch.load(tmp_path / "out/latents_stats.pt", weights_only=True)
    assert statistics["mean"].shape == statistics["std"].shape == (1, 4, 1, 1)


def test_an_interrupted_export_is_written_again(own, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vfmtok.data.latent_export.SHARD", 4)
    command = ["export-codes", str(own / "sample"), str(tmp_path / "out"), "--to"]
    for _ in range(2):  # one that is impossible leaves nothing that stands in the way
        assert cli.main([*command, "reg"]) == 2
    with monkeypatch.context() as patch:
        patch.setattr("vfmtok.data.latent_export._write_statistics", lambda cache, out: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli.main([*command, "lightningdit"])
    first = tmp_path / "out/latents_rank00_shard000.safetensors"
    whole = first.read_bytes()
    first.write_bytes(b"")
    assert cli.main([*command, "reg"]) == 2 and "is not empty" in capsys.readouterr().err
    assert cli.main([*command, "lightningdit"]) == 0
    assert first.read_bytes() == whole and (tmp_path / "out/latents_stats.pt").exists()
    assert not list((tmp_path / "out").glob("*.json"))
    assert cli.main([*command, "lightningdit"]) == 2 and "is not empty" in capsys.readouterr().err


def test_reg_gets_the_images_too(own, tmp_path):
    command = ["export-codes", str(own / "moments"), str(tmp_path / "out"), "--to", "reg", "--dataset"]
    assert cli.main([*command, str(own / "lmdb")]) == 0
    lists = [json.loads((tmp_path / f"out/{place}/dataset.json").read_text()) for place in ("vae_latents", "images")]
    names = [[(Path(name).with_suffix("").as_posix(), label) for name, label in found["labels"]] for found in lists]
    assert names[0] == names[1] and len(names[0]) == COUNT
    records = RecordDataset(own / "lmdb")
    for row, (name, label) in enumerate(names[0]):
        assert label == records[row].label and name.split("/")[0] == name.split("/")[1].split("_")[0]
        image = np.asarray(Image.open(tmp_path / f"out/images/{name}.png"))
        assert np.array_equal(image, EvaluationCrop(16)(records[row].image).permute(1, 2, 0))


def test_a_tokenizer_without_posterior_exports_a_deviation_of_0(models, own, tmp_path):
    command = ["codes", str(own / "lmdb"), str(tmp_path / "cache"), "--vq-ckpt", str(models / "plain")]
    assert cli.main([*command, "--num-workers", "0", "--views", "center"]) == 0
    assert cli.main(["export-codes", str(tmp_path / "cache"), str(tmp_path / "out"), "--to", "reg"]) == 0
    files = sorted((tmp_path / "out/vae_latents").rglob("*.npy"))
    assert len(files) == COUNT and all(not np.load(file)[4:].any() and np.load(file)[:4].any() for file in files)


@pytest.mark.parametrize(
    ("cache", "more", "message"),
    [
        ("moments", ["--to", "lightningdit"], "make a cache with --posterior sample"),
        ("sample", ["--to", "reg"], "make a cache with --posterior moments"),
        ("sample", ["--to", "lightningdit", "--dataset", "x"], "--dataset belongs to --to reg"),
    ],
)
def test_exports_that_cannot_be_are_one_line(own, tmp_path, capsys, cache, more, message):
    assert cli.main(["export-codes", str(own / cache), str(tmp_path / "out"), *more]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "command",
    [["import-codes", "out", "--reg", "x", "--vq-ckpt", "y"], ["export-codes", "cache", "out", "--to", "reg"]],
)
def test_they_run_in_one_process(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "start", lambda: distributed.World(0, 2, torch.device("cpu")))
    assert cli.main(command) == 2
    assert f"`vfmtok {command[0]}` runs in one process" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def spoil(root: Path, what: str) -> list[object]:
    """Damage a folder of shards; what is wanted of the command beside."""
    shard = root / "latents_rank00_shard001.safetensors"
    tensors = safetensors.torch.load_file(shard)
    if what == "cut":
        shard.write_bytes(shard.read_bytes()[:300])
    elif what == "flip":
        safetensors.torch.save_file({key: tensors[key] for key in ("latents", "labels")}, shard)
    elif what == "shape":
        safetensors.torch.save_file({**tensors, "latents": tensors["latents"][:, :2].contiguous()}, shard)
    elif what == "labels":
        safetensors.torch.save_file({**tensors, "labels": tensors["labels"][:1]}, shard)
    elif what == "nan":
        tensors["latents"][1, 0, 0, 0] = torch.nan
        safetensors.torch.save_file(tensors, shard)
    elif what == "statistics":
        torch.save({"mean": torch.zeros(1, 4, 1, 1), "std": torch.full((1, 4, 1, 1), 9.0)}, root / "latents_stats.pt")
    elif what == "code":
        torch.save({"mean": torch.zeros(1), "std": print}, root / "latents_stats.pt")
    return ["--count", 3] if what == "count" else ["--reg", root] if what == "both" else []


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cut", "cannot read"),
        ("flip", "only some of the shards"),
        ("shape", "latents (2, 2, 4, 4)"),
        ("labels", "labels (1,)"),
        ("nan", "a latent of record 6 is not finite"),
        ("statistics", "the published statistics are not of the latents"),
        ("code", "cannot read arrays"),
        ("count", "--count belongs to folders of ids"),
        ("both", "name what the views are"),
    ],
)
def test_whatever_is_odd_is_one_line(models, tmp_path, capsys, what, message):
    write_shards(tmp_path / "shards")
    more = spoil(tmp_path / "shards", what)
    assert imported(models, tmp_path / "cache", "--lightningdit", tmp_path / "shards", *more) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and error.startswith("vfmtok import-codes: error: ")


def test_a_tokenizer_of_other_latents_is_one_line(tmp_path, capsys):
    write_shards(tmp_path / "shards")
    vfmtok.save_pretrained(continuous_family.tokenizer(channels=2), tmp_path / "other")
    assert imported(tmp_path, tmp_path / "cache", "--lightningdit", tmp_path / "shards", tokenizer="other") == 2
    assert "latents (n, 2, 4, 4)" in capsys.readouterr().err


def test_published_statistics_of_every_layout(tmp_path):
    mean = torch.randn(4, 4, 4)
    std = 0.5 + torch.rand(4, 4, 4)
    layouts = {
        "lightningdit": ({"mean": mean[None, :, :1, :1], "std": std[None, :, :1, :1]}, std[:, :1, :1]),
        "rae": ({"mean": mean, "var": std**2 - 1e-5}, std),
        "vfmtok2": ({"mean": mean.flatten(1).numpy(), "var": std.flatten(1).numpy()}, std + 1e-5),
    }
    for name, (content, expected) in layouts.items():
        torch.save(content, tmp_path / f"{name}.pt")
        found = read_statistics(tmp_path / f"{name}.pt", CODE)
        torch.testing.assert_close(found.std, expected)
        assert torch.equal(found.mean, mean[:, :1, :1] if name == "lightningdit" else mean)
    torch.save({"mean": mean, "var": print}, tmp_path / "code.pt")
    with pytest.raises(WeightsError, match="may run code"):
        read_statistics(tmp_path / "code.pt", CODE)
    torch.save({"mean": mean[:2], "var": std[:2]}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="not of latents of 4 x 4 x 4"):
        read_statistics(tmp_path / "other.pt", CODE)


def test_a_file_of_statistics_instead_of_the_folders(models, tmp_path):
    write_shards(tmp_path / "shards")
    values = random_latents(5, 500)
    content = {"mean": values.mean(0).flatten(1).numpy(), "var": values.std(0).flatten(1).numpy()}
    torch.save(content, tmp_path / "stats-500.pt")
    more = ("--stats-file", tmp_path / "stats-500.pt")
    assert imported(models, tmp_path / "cache", "--lightningdit", tmp_path / "shards", *more) == 0
    found = LatentCache(tmp_path / "cache").statistics
    np.testing.assert_allclose(found.std.flatten(1), content["var"] + 1e-5, rtol=1e-6)
