"""test_net.py and what it calls: which samples there are, whoever makes them, and what is checked before measuring."""

import json
import runpy
import shutil
import sys

import numpy as np
import pytest
import tiny_models
import torch
import yaml
from PIL import Image
from tiny_models import GPT_SHAPE, ROOT, WORLD, run_script, samples_in, values

import vfmtok
from vfmtok.commands.evaluation_flags import generation_parser, open_gpt
from vfmtok.config import config_to_dict
from vfmtok.errors import ConfigError, DataError, EvaluationError, WeightsError
from vfmtok.evaluation import jobs
from vfmtok.evaluation.generation import evaluate_generator
from vfmtok.evaluation.image_sources import open_images
from vfmtok.evaluation.reference import ReferenceSet, inception_features, measure_reference
from vfmtok.evaluation.samples import Samples, warnings_about, write_checked_samples
from vfmtok.generators.token_sampling import TokenSampling
from vfmtok.metrics.precision_recall import precision_recall
from vfmtok.weights.checkpoint import Checkpoint, CheckpointFolder
from vfmtok.weights.hashing import tokenizer_hash

COUNT, SIZE = 11, 40  # divisible by nothing
SAMPLES = Samples(count=COUNT, size=SIZE, seed=3)


@pytest.fixture(scope="module")
def models():
    return tiny_models.gpt(), tiny_models.tokenizer()


def evaluate(models, folder, samples=SAMPLES, batch=4, **options):
    return evaluate_generator(*models, samples, folder, WORLD, batch=batch, **options)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def plain(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return folder, evaluate(models, folder)


def test_samples_are_those_of_generate(models, plain):
    gpt, tokenizer = models
    images, labels = samples_in(plain[0])
    assert images.shape == (COUNT, SIZE, SIZE, 3) and images.dtype == np.uint8 and labels.dtype == np.int64
    for n in range(COUNT):
        one = torch.tensor([n])
        ids = vfmtok.generate(gpt, torch.from_numpy(labels[n : n + 1]), cfg_scale=1.5, seed=3, sample_indices=one)
        expected = tokenizer.decode_to_uint8(ids, SIZE)[0].numpy().astype(int)
        assert np.abs(images[n] - expected).max() <= 1 and (images[n] != expected).mean() < 1e-3  # truncated


def test_labels(models):
    many = Samples(count=30_000).labels(1000)
    counts = np.bincount(many, minlength=1000)
    assert abs(((counts - 30) ** 2 / 30).sum() - 999) < 6 * np.sqrt(2 * 999)  # chi-squared, 999 degrees of freedom
    assert np.array_equal(Samples(count=50).labels(1000), many[:50])  # a longer run begins with the shorter one's
    assert not np.array_equal(Samples(count=50, seed=1).labels(1000), many[:50])
    assert np.bincount(Samples(count=25, classes="balanced").labels(10)).tolist() == [3] * 5 + [2] * 5


def test_names_say_how_the_samples_were_guided():
    assert Samples(TokenSampling(cfg_scale=1.0)).name == "no-cfg-50000x256px-seed-0"
    assert Samples(TokenSampling(cfg_interval=4, top_k=9), classes="balanced").name == (
        "cfg-1.5-interval-4-50000x256px-seed-0-topk-9-classes-balanced"
    )
    assert Samples(TokenSampling(cfg_scale=2.0, top_k=9), classes="balanced").protocol == (
        "50,000 samples at 256 px, CFG 2, balanced classes, seed 0, top-k 9"
    )
    assert [TokenSampling(scale).guidance for scale in (1.0, 1.25)] == ["no CFG", "CFG 1.25"]
    assert TokenSampling(3.0, 5, "power-cosine", 2.75).guidance == "CFG 3 interval 5 power-cosine 2.75"


def test_an_interrupted_run_continues_with_the_same_images(models, plain, tmp_path):
    gpt = models[0]
    calls = []

    def cut(*_):
        calls.append(1)
        if len(calls) == 2 * gpt.config.num_tokens + 5:  # in the third block
            raise KeyboardInterrupt

    handle = gpt.output.register_forward_hook(cut)
    with pytest.raises(KeyboardInterrupt):
        evaluate(models, tmp_path)
    handle.remove()
    assert len(list((tmp_path / "parts").iterdir())) == 2
    with pytest.raises(DataError, match="another seed"):
        evaluate(models, tmp_path, Samples(count=COUNT, size=SIZE, seed=4))
    evaluate(models, tmp_path)
    for found, expected in zip(samples_in(tmp_path), samples_in(plain[0]), strict=True):
        assert np.array_equal(found, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "results.json", "samples.npz"]
    assert np.asarray(Image.open(tmp_path / "grid.png")).std() > 10


def test_samples_are_measured_anew_and_not_made_anew(models, plain, inception, tmp_path):
    """What was sampled with --no-fid, or against another reference, took hours."""
    first = evaluate(models, tmp_path)
    assert first["numbers"] == {} and "KID are left out: no Inception network" in first["notes"][0]
    made = (tmp_path / "samples.npz").stat().st_mtime_ns
    second = evaluate(models, tmp_path, inception=inception)
    assert list(values(second)) == ["IS (CFG 1.5)"] and second["samples"] == first["samples"]
    assert "weights unknown" in second["numbers"]["IS (CFG 1.5)"]["protocol"]
    reference = measure_reference(inception, open_images(samples_in(plain[0])[0]), "itself")
    third = evaluate(models, tmp_path, inception=inception, references=ReferenceSet(reference, None))
    assert values(third)["gFID (CFG 1.5)"] == pytest.approx(0, abs=1e-3)
    assert (tmp_path / "samples.npz").stat().st_mtime_ns == made and not (tmp_path / "parts").exists()
    with pytest.raises(DataError, match="another top_k"):
        evaluate(models, tmp_path, Samples(TokenSampling(top_k=5), count=COUNT, size=SIZE, seed=3))


def test_an_unfinished_job_of_version_0_1_is_continued(models, plain, tmp_path):
    """It says nothing of the settings that came later, which then were as they are by default."""
    known = ("GPT", "tokenizer", "count", "size", "cfg_scale", "cfg_interval", "temperature", "top_k", "top_p", "seed")
    known += ("classes", "precision", "Inception", "reference")
    old = {name: plain[1]["job"][name] for name in known}
    (tmp_path / "parts").mkdir()
    (tmp_path / "job.json").write_text(json.dumps(old))
    labels = SAMPLES.labels(3)[:4]
    arrays = {"images": np.full((4, SIZE, SIZE, 3), 9, np.uint8), "labels": labels, "ids": np.zeros((4, 16), np.int32)}
    np.savez(tmp_path / "parts/00000000-00000004.npz", **arrays)
    with pytest.raises(DataError, match="another greedy"):
        evaluate(models, tmp_path, Samples(TokenSampling(greedy=True), count=COUNT, size=SIZE, seed=3))
    evaluate(models, tmp_path)
    images = samples_in(tmp_path)[0]
    assert (images[:4] == 9).all() and np.array_equal(images[4:], samples_in(plain[0])[0][4:])


def test_low_precision_is_continued_at_its_batch_size_only(models, plain, tmp_path):
    """There another batch size is another sample (generators/gpt/generate.py); in float32 it is the same."""
    low, bf16 = Samples(count=5, size=8, precision="bf16"), tiny_models.gpt().to(torch.bfloat16)
    evaluate((bf16, models[1]), tmp_path, low, batch=3)
    assert evaluate((bf16, models[1]), tmp_path, low, batch=3)["job"]["batch"] == 3
    for options, text in (({"batch": 4}, "another batch "), ({"batch": 3, "compile": True}, "another compile ")):
        with pytest.raises(DataError, match=text):
            evaluate((bf16, models[1]), tmp_path, low, **options)
    assert evaluate(models, plain[0], batch=5) == plain[1]


def test_models_that_do_not_belong_together(models, tmp_path):
    with pytest.raises(ConfigError, match="16 tokens of 65 codes, the tokenizer has 16 tokens of 64 codes"):
        evaluate((tiny_models.gpt(vocab_size=65), models[1]), tmp_path)


def test_samples_are_checked(tmp_path):
    samples = Samples(count=4, size=8, classes="balanced")
    labels, random = samples.labels(2), np.random.default_rng(0)
    good = random.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)

    def check(images, found=labels):
        jobs.begin(tmp_path, {})
        store = jobs.Blocks(tmp_path, 4)
        for rows in (np.arange(3), np.arange(3, 4)):
            store.write(rows, {"images": images[rows], "labels": found[rows]})
        return write_checked_samples(store, samples, labels, 3, tmp_path / "samples.npz")

    counted = check(good)
    assert counted == {
        **{"count": 4, "classes": 3, "classes_without_samples": 1, "labels_per_class": [0, 2]},
        **{"copies": 0, "single_colour": 0},
    }
    assert warnings_about(counted) == [] and np.array_equal(samples_in(tmp_path)[0], good)
    assert len(open_images(tmp_path / "samples.npz")) == 4
    copies = good.copy()
    copies[3], copies[1] = good[0], 7
    assert warnings_about(check(copies)) == [
        "1 of the 4 samples are copies of others",
        "1 of the 4 samples are of a single colour",
    ]
    with pytest.raises(EvaluationError, match="samples 0 to 2 do not have the labels"):
        check(good, 1 - labels)
    with pytest.raises(EvaluationError, match="not uint8"):
        check(good.astype(np.float32))
    with pytest.raises(EvaluationError, match="not uint8"):
        check(good[:, :4])
    with pytest.raises(EvaluationError, match="no pixel of the samples is above 1"):
        check(good % 2)
    assert np.array_equal(samples_in(tmp_path)[0], copies)  # what is wrong replaces nothing
    (tmp_path / "parts/00000003-00000004.npz").unlink()
    with pytest.raises(DataError, match="lacks samples"):
        write_checked_samples(jobs.Blocks(tmp_path, 4), samples, labels, 3, tmp_path / "samples.npz")


@pytest.mark.slow  # tests/evaluation/test_ranks.py has its parts
def test_the_script_in_two_processes(models, plain, inception, inception_file, tmp_path):
    """Every published flag; the images of one process; and the numbers against those images measured here."""
    images = np.random.default_rng(1).integers(0, 256, (9, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez(tmp_path / "reference.npz", images)
    flags = [*tiny_models.write_models(tmp_path), "--gpt-ckpt", tmp_path / "gpt.pt", *GPT_SHAPE]
    flags += ["--gpt-model", "GPT-B", "--image-size", 32, "--image-size-eval", SIZE, "--sample-dir", tmp_path]
    flags += ["--cfg-scale", 1.5, "--cfg-interval", -1, "--top-k", 0, "--top-p", 1.0, "--temperature", 1.0]
    flags += ["--precision", "none", "--per-proc-batch-size", 4, "--num-fid-samples", COUNT, "--no-compile"]
    flags += ["--ref-batch", tmp_path / "reference.npz", "--latent-size", 4, "--num-classes", 3]
    flags += ["--codebook-slots-embed-dim", 8, "--global-seed", 3]
    done = run_script("test_net.py", *flags, "--inception", inception_file, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / f"GPT-B-{SAMPLES.name}"
    for found, expected in zip(samples_in(folder), samples_in(plain[0]), strict=True):
        assert np.array_equal(found, expected)
    results = json.loads((folder / "results.json").read_text())
    assert list(values(results)) == [f"{name} (CFG 1.5)" for name in ("gFID", "sFID", "IS", "Pr", "Rc")]
    assert {f"{name} (CFG 1.5)" in done.stdout for name in ("gFID", "sFID", "IS", "Pr", "Rc")} == {True}
    measured = (samples_in(folder)[0], images)
    sets = [next(found for _, found in inception_features(inception, open_images(x), 64)) for x in measured]
    shares = precision_recall(*(features.pool for features in sets))
    assert (values(results)["Pr (CFG 1.5)"], values(results)["Rc (CFG 1.5)"]) == shares
    pools = [features.pool.double() for features in sets]
    # Of fewer samples than features tr sqrt(S1 S2) is the nuclear norm of the samples' inner products.
    centred = [(pool - pool.mean(0)) / (len(pool) - 1) ** 0.5 for pool in pools]
    overlap = torch.linalg.matrix_norm(centred[0] @ centred[1].t(), "nuc")
    fid = (pools[0].mean(0) - pools[1].mean(0)).square().sum() + sum(c.square().sum() for c in centred) - 2 * overlap
    assert values(results)["gFID (CFG 1.5)"] == pytest.approx(fid.item(), rel=1e-5)


def test_the_script_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    flags = [*tiny_models.write_models(tmp_path), "--gpt-ckpt", tmp_path / "gpt.pt", *GPT_SHAPE, "--no-fid"]
    for more, text in (
        (["--num-classes", 4], "these weights are not those of GPT: 1 mis-shaped: cls_embedding"),
        (["--latent-size", 16], "--latent-size 16 makes 256 tokens, the tokenizer has 16"),
        (["--gpt-set", "depth"], "--gpt-set takes FIELD=VALUE"),
        (["--num-fid-samples", 0], "a positive whole number is needed"),
        (["--top-m", 0], "unknown flag --top-m (closest match: --top-"),
    ):
        monkeypatch.setattr(sys, "argv", ["test_net.py", *map(str, [*flags, *more])])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "test_net.py"), run_name="__main__")
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.startswith("test_net.py: error: ") and text in error
        assert error.count("\n") == 1


def test_a_run_says_what_it_is(models, tmp_path, monkeypatch, capsys):
    """Its size, tokenizer and class names; flags that contradict them are errors, not ignored."""
    gpt, tokenizer = models
    run = tmp_path / "flags_of_the_world"

    def learned_from(digest):
        facts = {"classes": ["ant", "bee", "cat"], "tokenizer_hash": digest}
        config = yaml.safe_dump({"gpt": config_to_dict(gpt.config)})  # as version 0.1 wrote it
        saved = Checkpoint(1, {"model": dict(gpt.state_dict())}, {"parts": {"tokens": facts}}, config)
        shutil.rmtree(run, ignore_errors=True)
        CheckpointFolder(tmp_path).save(saved).rename(run)

    def opened(*more):
        given = [*flags, "--gpt-ckpt", run, "--no-fid", *more]
        return open_gpt(generation_parser().parse_args(list(map(str, given))), tokenizer, WORLD)

    flags = tiny_models.write_models(tmp_path)
    learned_from(tokenizer_hash(tokenizer))
    found, name, classes = opened("--num-classes", 3, "--vocab-size", 64, "--gpt-set", "n_layer=3")
    assert name == "flags_of_the_world" and classes == ["ant", "bee", "cat"]
    assert torch.equal(found.output.weight, gpt.output.weight)
    for more, text in (
        (["--num-classes", 4], "has num_classes 3, not 4"),
        (["--vocab-size", 65], "has vocab_size 64, not 65"),
        (["--gpt-model", "GPT-L"], "has n_layer 3, not 24"),
        (["--gpt-set", "qk_norm=true"], "has qk_norm False, not True"),
    ):
        with pytest.raises(ConfigError, match=text):
            opened(*more)
    learned_from("ab" * 32)
    with pytest.raises(WeightsError, match="trained on the tokens of another tokenizer"):
        opened()
