"""Weight files: nothing runs, damage is named, the Hub is reached through its real client."""

import argparse
import io
import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save

from vfmtok.errors import WeightsError
from vfmtok.weights import reading


@pytest.mark.parametrize("wrap", [lambda sd: sd, lambda sd: {"model": sd}, lambda sd: {"state_dict": sd, "epoch": 3}])
def test_torch_files_and_their_containers(tmp_path, wrap):
    state_dict = {"a.weight": torch.randn(3), "b": torch.tensor(1)}
    torch.save(wrap(state_dict), tmp_path / "w.pt")
    read = reading.read(tmp_path / "w.pt")
    assert read.keys() == state_dict.keys()
    assert all(torch.equal(read[name], state_dict[name]) for name in read)


class Payload:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_code_in_a_file_does_not_run(tmp_path):
    for name, write in (("zip", torch.save), ("plain", lambda x, path: path.write_bytes(pickle.dumps(x)))):
        path, target = tmp_path / f"{name}.pt", tmp_path / f"ran_{name}"
        write({"model": Payload(target)}, path)
        with pytest.raises(WeightsError, match="cannot read weights from"):
            reading.read(path)
        assert not target.exists()


def test_code_hidden_deeper_does_not_run(tmp_path):
    target = tmp_path / "ran"
    weight = torch.zeros(2)
    hidden = {
        "beside": {"ema": {"w": weight}, "model": {"w": weight, "x": [Payload(target)]}},
        "array": {"ema": {"w": weight}, "best": np.array([Payload(target)], object)},
        "namespace": {"model": {"w": weight}, "args": argparse.Namespace(path=Payload(target))},
    }
    for name, content in hidden.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(WeightsError, match="which may run code; a weight file holds tensors") as error:
            reading.read(tmp_path / f"{name}.pt")
        assert "\n" not in str(error.value)
    with tarfile.open(tmp_path / "old.pt", "w") as archive:  # PyTorch's form until 2017
        member = tarfile.TarInfo("pickle")
        content = pickle.dumps(Payload(target))
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    with pytest.raises(WeightsError, match="it is a tar archive"):
        reading.read(tmp_path / "old.pt")
    assert not target.exists()


def test_an_average_that_is_empty_or_holds_itself(tmp_path):
    state_dict = {"w": torch.ones(2)}
    torch.save({"ema": {}, "model": state_dict}, tmp_path / "empty.pt")
    assert reading.read_named(tmp_path / "empty.pt")[1] == "model"
    endless = {"w": torch.ones(2)}
    endless["ema"] = endless
    torch.save(endless, tmp_path / "endless.pt")
    with pytest.raises(WeightsError, match="does not hold a state dict"):
        reading.read(tmp_path / "endless.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut short"])
def test_damaged_files_are_named_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as error:
        reading.read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_something_else_than_a_state_dict(tmp_path):
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="does not hold a state dict"):
        reading.read(tmp_path / "w.pt")


# --------------------------------------------------------------------------------------
# The Hub
# --------------------------------------------------------------------------------------

BUILD = """
import json, sys
from vfmtok.encoders.vfm import EncoderConfig
from vfmtok.errors import WeightsError
from vfmtok.encoders.vfm import Encoder
try:
    encoder = Encoder(EncoderConfig(name="test_vit.r160_in1k", levels=(6,), weights="hub", image_size=160))
except WeightsError as error:
    sys.exit(f"WeightsError: {error}")
state = encoder.backbone.state_dict()
print(json.dumps([encoder.config.weights_sha256, state["patch_embed.proj.weight"].double().sum().item()]))
"""


NOT_INHERITED = ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE")


@pytest.fixture
def hub(tmp_path):
    """A loopback server that answers like the Hub for one repository, and a subprocess that uses it."""
    reference = timm.create_model("test_vit").state_dict()
    content = save(reference)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body: bool):
            paths = [f"/timm/test_vit.r160_in1k/resolve/{name}/model.safetensors" for name in ("main", "a" * 40)]
            found = self.path in paths
            self.send_response(200 if found else 404)
            if found:
                self.send_header("ETag", '"0123456789abcdef"')
                self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.end_headers()
            if found and body:
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def build(port: int = server.server_port) -> subprocess.CompletedProcess:
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path / "cache")}
        environment |= {"HF_HUB_DISABLE_XET": "1", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        environment = {name: value for name, value in environment.items() if name not in NOT_INHERITED}
        command = [sys.executable, "-c", BUILD]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    yield build, reference
    server.shutdown()
    server.server_close()


@pytest.mark.slow  # tests/weights/test_download.py has its parts
def test_hub_download_and_cache(hub):
    build, reference = hub
    first = build()
    assert first.returncode == 0, first.stderr
    digest, total = json.loads(first.stdout)
    assert len(digest) == 64
    assert total == reference["patch_embed.proj.weight"].double().sum().item()
    offline = build(port=9)  # nothing listens there: the cache answers
    assert offline.stdout == first.stdout, offline.stderr


def test_hub_out_of_reach_is_said_clearly(hub):
    build, _ = hub
    done = build(port=9)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert "weights of 'test_vit.r160_in1k' are neither in the Hub cache nor reachable at timm/test_vit" in message
    assert "set encoder.weights to the file" in message


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_that_wrappers_leave(tmp_path, prefix):
    tensors = {"a.weight": torch.ones(2), "model.b": torch.zeros(3)}
    torch.save({"model": {prefix + name: tensor for name, tensor in tensors.items()}}, tmp_path / "w.pt")
    found = reading.read(tmp_path / "w.pt")
    assert list(found) == ["a.weight", "model.b"] and torch.equal(found["a.weight"], tensors["a.weight"])


def test_numpy_values_and_random_states_beside_the_weights(tmp_path):
    beside = {
        "loss": np.float64(0.5), "step": np.int64(3), "best": np.bool_(True), "lr": np.float32(1e-4),
        "numpy_rng": np.random.RandomState(0).get_state(), "python_rng": random.Random(0).getstate(),
        "history": np.arange(3.0), "torch_rng": torch.get_rng_state(),
    }  # fmt: skip
    torch.save({"model": {"a": torch.ones(2)}, **beside}, tmp_path / "w.pt")
    assert torch.equal(reading.read(tmp_path / "w.pt")["a"], torch.ones(2))
