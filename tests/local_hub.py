"""A Hub on the loopback, for tests of whatever downloads."""

import hub_server
import pytest


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The server that HF_ENDPOINT names, before a cache that is empty."""
    state = hub_server.Hub()
    server = hub_server.serve(state)
    monkeypatch.setenv("HF_ENDPOINT", state.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    yield state
    server.shutdown()
    server.server_close()
