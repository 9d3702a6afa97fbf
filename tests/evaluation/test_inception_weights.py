"""Finding and fetching the weights, with a server on the loopback that behaves and misbehaves."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from vfmtok.errors import WeightsError
from vfmtok.evaluation import inception_weights
from vfmtok.evaluation.inception import load_inception
from vfmtok.evaluation.inception_weights import VARIABLE, fetch, find_weights

CONTENT = bytes(range(256)) * 9000  # more than one block
PREFIX = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture
def server():
    """``server("/name-<hash>.pth")`` -> its URL; "cut" in the name breaks the connection in the middle."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if "absent" in self.path:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[: len(CONTENT) // 2] if "cut" in self.path else CONTENT)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield lambda name: f"http://127.0.0.1:{running.server_port}/{name}"
    running.shutdown()
    running.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty PyTorch Hub cache, and no proxy on the way to the loopback."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_download_then_cache(server, cache):
    url = server(f"weights-{PREFIX}.pth")
    path = find_weights(url=url)
    assert path == cache / f"weights-{PREFIX}.pth" and path.read_bytes() == CONTENT
    assert find_weights(url=url, download=False) == path
    assert [p.name for p in cache.iterdir()] == [path.name]
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match="delete it"):
        find_weights(url=url)


@pytest.mark.parametrize(
    "name, message",
    [
        ("weights-00000000.pth", f"SHA-256 {PREFIX}.* instead of 00000000"),
        (f"cut-{PREFIX}.pth", f"interrupted after .* of {len(CONTENT)} bytes"),
        (f"absent-{PREFIX}.pth", "404"),
    ],
)
def test_a_failed_download_leaves_nothing(server, cache, name, message):
    with pytest.raises(WeightsError, match=message) as error:
        find_weights(url=server(name))
    assert VARIABLE in str(error.value) and str(cache / name) in str(error.value) and "\n" not in str(error.value)
    assert list(cache.iterdir()) == []


def test_nobody_answers(tmp_path):
    with pytest.raises(WeightsError, match="cannot download"):
        fetch("http://127.0.0.1:9/weights.pth", tmp_path / "weights.pth")


def test_a_named_file_comes_first(tmp_path, monkeypatch, cache):
    file = tmp_path / "mine.pth"
    with pytest.raises(WeightsError, match=r"mine\.pth"):
        find_weights(file)
    file.write_bytes(b"x")
    assert find_weights(file) == file
    monkeypatch.setenv(VARIABLE, str(file))
    assert find_weights() == file
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(WeightsError, match=f"from .{VARIABLE}"):
        find_weights()
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(WeightsError, match="looked for") as error:
        find_weights(download=False)
    assert inception_weights.URL in str(error.value)


def test_loading_reads_tensors_only_and_remembers_the_hash(tmp_path, inception, inception_weights):
    path = tmp_path / "weights.pth"
    torch.save(inception_weights, path)
    loaded = load_inception(path)
    assert loaded.protocol()["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(loaded(images).pool, inception(images).pool)
    torch.save({"model": print}, path)  # a pickle that refers to a function
    with pytest.raises(WeightsError, match="cannot read weights"):
        load_inception(path)
