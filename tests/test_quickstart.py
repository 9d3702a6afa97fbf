"""scripts/quickstart.sh, whole, on a few images and with training of a few steps; then again."""

import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vfmtok.data.dataset_folder import open_splits

ROOT = Path(__file__).parent.parent
TINY = {
    "TOKENIZER_FLAGS": "--set optimizer.steps=6 --set codebook.continuous_steps=2",
    "GENERATOR_FLAGS": "--set optimizer.steps=4 --set pictures.every=4 --global-batch-size 4",
    "VENV": sys.prefix,
}

STAGES = [f"tokenizer_stage{number}" for number in range(3)]


def run(*arguments, cwd=ROOT, **environment):
    script = ROOT / "scripts/quickstart.sh"
    environment = {**os.environ, **TINY, **environment}
    command, pipe = [script, *map(str, arguments)], subprocess.PIPE
    with subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what the script started, too
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def commands(done):
    """The stages as they were printed."""
    return [command.split() for command in re.findall(r"\$ (.*?)\033\[0m", done.stdout)]


@pytest.fixture(scope="module")
def photos(sample_set, tmp_path_factory):
    """Class folders of 24 images."""
    folder, records = tmp_path_factory.mktemp("photos"), open_splits(sample_set)["val"]
    of_two_classes = [record for record in map(records.__getitem__, range(len(records))) if record.label in (1, 5)]
    for number, record in enumerate(of_two_classes[::3][:24]):
        place = folder / records.class_name(record.label) / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(record.image)
    return folder


def test_own_images_become_a_page(photos, tmp_path):
    done = run("--data", photos.name, "--out", tmp_path / "out", cwd=photos.parent)  # paths are the caller's
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "out/report.html").read_text()
    assert "Not there yet" not in page and "http" not in re.sub(r"base64,[^']+", "", page)
    assert page.count("data:image/png;base64,") == 8
    for word in ("animals_nature", "people_body", "agreement, no CFG", "agreement, CFG 2", "PSNR", "perplexity"):
        assert word in page, word
    assert [command[command[0] == "python"] for command in commands(done)] == [
        *["vfmtok"] * 3, "vq_train.py", "vqgan_test.py", *["vfmtok"] * 2, "train_c2i.py", *["vfmtok"] * 4,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_continuous_system_becomes_a_page(photos, tmp_path):
    """VFM-VAE's four stages, each from the one before, and a LightningDiT."""
    done = run(
        *("--system", "vfm_vae", "--data", photos, "--out", tmp_path / "out"),
        TOKENIZER_FLAGS="--set optimizer.steps=3 --set optimizer.warmup_steps=0 --global-batch-size 4",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "out/report.html").read_text()
    assert "Not there yet" not in page and "The codebook" not in page and "region tokens" not in page
    for word in ("The latents", "latents of 16 x 8 x 8", "steps 5<", "curves of tokenizer_stage2"):
        assert word in page, word
    for place in ("tokenizer_stage1", "tokenizer_stage2", "tokenizer"):
        assert "start_from: " in (tmp_path / "out" / place / "recipe.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "words"),
    [
        ("hita", ("of the 16 tokens", "of the 64 tokens")),
        ("rar", ("Where the region tokens look", "kind: rar")),
        ("vqgan", ("kind: vqgan", "tf_efficientnet_lite0, trained on")),  # its probe has an encoder of its own
    ],
)
def test_other_systems_of_ids_become_a_page(photos, tmp_path, system, words):
    done = run("--system", system, "--data", photos, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "out/report.html").read_text()
    assert "Not there yet" not in page and "The latents" not in page
    for word in ("nats per held-out token", "agreement, CFG 2", "perplexity", *words):
        assert word in page, word


@pytest.mark.slow
def test_the_same_command_again_changes_nothing(photos, tmp_path):
    def weights():
        return {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")}

    first, kept = run("--data", photos, "--out", tmp_path / "out"), weights()
    again = run("--data", photos, "--out", tmp_path / "out")
    assert first.returncode == again.returncode == 0, again.stdout + again.stderr
    assert kept and kept == weights()


@pytest.mark.parametrize("source", ["folder", "zip"])
def test_a_part_is_held_out_unless_the_images_bring_it(photos, source, tmp_path):
    """Also where it lies inside an archive, or is called "valid"; what is ambiguous is asked, and a flag decides it.
    (Training then ends at an unknown setting.)"""
    place, split, flags = photos, ["--val-fraction", "0.1"], ""
    if source == "zip":
        place, split, flags = tmp_path / "photos.zip", [], "--split others=test"
        with zipfile.ZipFile(place, "w") as archive:
            for number, file in enumerate(sorted(photos.rglob("*.png"))):
                name = f"{('valid', 'others', 'train', 'train')[number % 4]}/{file.relative_to(photos)}"
                archive.writestr(name, file.read_bytes())
        done = run("--data", place, "--out", tmp_path / "out")
        assert done.returncode == 2 and "Say --split others=train" in done.stderr and not commands(done)
    done = run("--data", place, "--out", tmp_path / "out", PREPARE_FLAGS=flags, TOKENIZER_FLAGS="--set no.such=1")
    assert done.returncode == 2 and "unknown key 'no'" in done.stderr
    assert commands(done)[0] == ["vfmtok", "prepare", str(place), str(tmp_path / "out/data"), *split, *flags.split()]
    assert open_splits(tmp_path / "out/data").keys() == {"train", "val"}
    assert "python" not in (tmp_path / "out/timings.tsv").read_text()  # what failed was not done


@pytest.mark.slow
def test_one_class_gets_its_page_too(photos, tmp_path):
    done = run("--data", photos / "people_body", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "there is one class" in done.stderr and "continuing with the page" in done.stdout
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("Not there yet") == 1 and "agreement/results.json" in page


@pytest.fixture
def recorded(tmp_path):
    """``recorded(words, ...)``: the script in an environment that does nothing; commands with ``words`` fail.

    Trainings leave their ``finished`` but for those that ``stopped`` names. What reads the schedule ``prints``."""

    def run_in_it(words, *arguments, names=("python", "vfmtok"), stopped=(), prints=""):
        binaries = tmp_path / "venv/bin"
        binaries.mkdir(parents=True)
        (tmp_path / "out/data/val_lmdb").mkdir(parents=True)
        for name in {"tokenizer", "generator", *STAGES} - set(stopped):
            (tmp_path / "out" / name).mkdir(parents=True)
            (tmp_path / "out" / name / "finished").touch()
        for name in (*names, "maker"):
            (binaries / name).write_text(
                f'#!/bin/sh\ncase "$*" in *"{words}"*) echo "Error: so it is" >&2; exit 2; esac\n'
                f'case "$*" in *trainings*) echo "{prints}"; esac\n'
            )
            (binaries / name).chmod(0o755)
        environment = {"VENV": str(tmp_path / "venv"), "PYTHON": str(binaries / "maker")}
        return run("--data", ROOT / "docs", "--out", tmp_path / "out", *arguments, **environment)

    return run_in_it


@pytest.mark.parametrize(("words", "quality"), [("find_weights", ["--no-fid"]), ("nothing", [])])
def test_the_gpu_preset_measures_what_it_can(recorded, words, quality):
    done = recorded(words, "--preset", "gpu")
    assert done.returncode == 0, done.stderr
    measured = next(command for command in commands(done) if "vqgan_test.py" in command)
    assert measured[-2 - len(quality) :] == ["--image-size-eval", "256", *quality]
    without = "continuing without rFID, whose Inception network cannot be found: so it is" in done.stdout
    assert without == bool(quality)


def test_the_table_of_systems(recorded, tmp_path):
    """Every recipe is there; stages begin with the weights of the one before; continuous systems sample in steps."""
    done = recorded("nothing", "--system", "vfm_vae")
    assert done.returncode == 0, done.stderr
    trained = [command for command in commands(done) if "vq_train.py" in command]
    recipes, folders = ([command[command.index(flag) + 1] for command in trained] for flag in FLAGS_OF_STAGES)
    assert recipes == [f"configs/vfm_vae/emoji64_stage{stage}.yaml" for stage in range(4)]
    assert folders == [
        str(tmp_path / "out" / name) for name in (*(f"tokenizer_stage{n}" for n in range(3)), "tokenizer")
    ]
    started = [[word for word in command if word.startswith("run.start_from=")] for command in trained]
    assert started == [[], *([f"run.start_from={folder}"] for folder in folders[:-1])]
    steps = [command[command.index("--steps") + 1] for command in commands(done) if "sample" in command]
    assert steps == ["50", "50", "5", "10", "20"]


def test_the_machine_is_measured_before_the_first_training(recorded):
    """By the recipes, settings and samples of the stages that follow."""
    done = recorded("nothing", "--system", "vfmae")
    before = [command[:2] for command in commands(done)].index(["python", "vq_train.py"]) - 1
    words = commands(done)[before]
    assert words[:3] == ["vfmtok", "pace", "configs/vfmae/emoji64.yaml"] and "--minutes" not in words
    for said in ("--steps 50", "--tokenizer-set optimizer.steps=6", "--generator-set pictures.every=4"):
        assert said in " ".join(words)


def test_trainings_are_shortened_to_the_minutes(recorded, tmp_path):
    """By what was measured, once: later runs find it there."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/pace-30.json").write_text("measured before")
    done = recorded("nothing", "--minutes", "30", prints="--set optimizer.steps=11")
    assert done.returncode == 0 and not any("pace" in command for command in commands(done))
    trained = [command for command in commands(done) if command[1] in ("vq_train.py", "train_c2i.py")]
    assert len(trained) == 2
    for command in trained:  # and the user's own flags come after
        settings = [word for word in command if word.startswith("optimizer.steps=")]
        assert settings[0] == "optimizer.steps=11" and len(settings) == 2


@pytest.mark.parametrize(
    ("minutes", "kept", "message"),
    [("soon", None, "--minutes needs a whole number from 1, not soon"), ("9", "pace.json", "another --minutes"),
     ("1", None, "is too short: preparing took 1")],
)  # fmt: skip
def test_minutes_that_cannot_be(recorded, tmp_path, minutes, kept, message):
    if kept is not None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / kept).touch()
    begun = kept is not None
    done = recorded("nothing", "--minutes", minutes, stopped=() if begun else ("tokenizer", *STAGES))
    assert done.returncode == 2 and message in done.stderr
    assert not any(command[:2] == ["python", "vq_train.py"] for command in commands(done))


def test_a_folder_that_was_begun_without_minutes_keeps_its_schedule(recorded):
    done = recorded("nothing", "--minutes", "30")
    assert done.returncode == 2 and "was begun without --minutes" in done.stderr and not commands(done)


FLAGS_OF_STAGES = ("--recipe", "--results-dir")


@pytest.mark.parametrize("system", ["vfmtok", "hita", "vqgan", "rar", "vfmae"])
def test_recipes_of_systems_are_there(recorded, system):
    done = recorded("nothing", "--system", system)
    assert done.returncode == 0, done.stderr
    trained = [command for command in commands(done) if command[0] == "python"]
    recipes = [ROOT / word for command in trained for word in command if word.startswith("configs/")]
    assert len(recipes) == 2 and all(recipe.is_file() for recipe in recipes)


def test_without_the_agreement_there_is_a_page(recorded):
    done = recorded("--cfg-scales")
    assert done.returncode == 0 and "continuing with the page without this stage" in done.stdout
    assert commands(done)[-1][:2] == ["vfmtok", "report"]


@pytest.mark.parametrize(("stopped", "last"), [("tokenizer", "vq_train.py"), ("generator", "train_c2i.py")])
def test_a_training_that_was_stopped_ends_the_script(recorded, tmp_path, stopped, last):
    """It exits with 0; what would follow had half a model."""
    done = recorded("nothing", stopped=(stopped,))
    assert done.returncode == 1 and commands(done)[-1][1] == last
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"{ROOT}/scripts/quickstart.sh --data {ROOT}/docs --out {tmp_path}/out")


def test_an_environment_that_was_left_half_made_is_made_again(recorded, tmp_path):
    done = recorded("-m pip", "--preset", "gpu", names=("python",))
    assert done.returncode == 2
    assert [command[1:] for command in commands(done)] == [
        ["-m", "venv", str(tmp_path / "venv")],
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", ".[train,quickstart,eval]"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "/no/such/folder"), "no images at /no/such/folder"),
        (("--out",), "--out needs a value"),
        (("--preset", "tpu"), "--preset is cpu or gpu, not tpu"),
        (("--system", "gan"), "--system is vfmtok, hita, rar, vfmae, vfm_vae or vqgan, not gan"),
        (("--system", "hita", "--preset", "gpu"), "--preset gpu is for the system vfmtok, not hita"),
        (("--system", "hita", "--encoder", "dinov2"), "--encoder dinov2 is for the systems vfmtok and rar, not hita"),
        (("--encoder", "clip"), "--encoder is package or dinov2, not clip"),
        (("--fast",), "unknown option --fast"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and not done.stdout
    assert re.fullmatch(f"scripts/quickstart.sh: error: {re.escape(message)}.*\n", done.stderr)
