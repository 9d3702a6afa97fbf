import socket
import sys

import pytest
import tiny_models

from vfmtok.cli import main

TABS = ("sample", "tokenize", "mix")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tiny_models.write_runs(tmp_path_factory.mktemp("runs"))


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "vfmtok.demo.page", raising=False)
    monkeypatch.delattr("vfmtok.demo.page", raising=False)  # of a test before
    assert main(["demo", "--vq-ckpt", "anywhere"]) == 2
    assert capsys.readouterr().err == "vfmtok demo: error: the demo needs Gradio: pip install 'vfmtok[demo]'\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpt-model", "GPT-B"], "--gpt-model belongs to --gpt"),
        (["--num-classes", "3"], "--num-classes belongs to --gpt"),
        (["--port", "0"], "--port must be in [1,65535]"),
        (["--vq-ckpt", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_served_is_one_line(runs, capsys, arguments, words):
    pytest.importorskip("gradio")
    assert main(["demo", "--vq-ckpt", str(runs[0]), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_folders_bring_their_own_models(runs, capsys):
    for flags in (["--gpt", str(runs[1])], ["--set", "tokenizer.dim=3"], ["--gpt-model", "GPT-B"]):
        assert main(["demo", str(runs[0].parent), *flags]) == 2
        assert f"leave out {flags[0]}, or the folder" in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line(runs, capsys):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "--vq-ckpt", str(runs[0]), "--gpt", str(runs[1]), "--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize("attention", ["deformable", "windowed"])
def test_the_page_has_what_the_models_can_do(tmp_path, attention):
    pytest.importorskip("gradio")
    from vfmtok.demo import page
    from vfmtok.demo.studio import Studio, write_examples

    tokenizer, examples = tiny_models.tokenizer(f"sampler.attention={attention}"), write_examples(tmp_path)
    for gpt in (None, tiny_models.gpt()):
        parts = [part["props"] for part in page.build(Studio(tokenizer, gpt, None), examples).config["components"]]
        tabs = [props["label"] for props in parts if props.get("id") in TABS]
        assert tabs == ["Class to images"] * (gpt is not None) + ["Image to tokens", "Mix two images"]
        hidden = [props for props in parts if props.get("visible") is False]
        holistic = [props for props in hidden if "holistic" in (props.get("label") or "")]
        assert len(holistic) == 1  # whose holistic tokens: there are none
        assert (hidden != holistic) == (attention == "windowed")  # which has no sampling points


def test_visitors_wait_for_each_other(tmp_path):
    """Whoever draws points listens to the sampler, through which another's image must not pass meanwhile."""
    pytest.importorskip("gradio")
    from vfmtok.demo import page
    from vfmtok.demo.studio import Studio, write_examples

    built = page.build(Studio(tiny_models.tokenizer(), tiny_models.gpt(), None), write_examples(tmp_path))
    ours = [function for function in built.fns.values() if function.fn.__module__ == "vfmtok.demo.page"]
    assert len(ours) == 9
    assert {(function.concurrency_id, function.concurrency_limit) for function in ours} == {("models", 1)}
