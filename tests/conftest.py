"""Fixtures shared by all tests: small tokenizers on the CPU."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

import vfmtok
from vfmtok import cli
from vfmtok.tokenizers import TOKENIZERS

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests run beside each other, and no command chooses and says so
pytest_plugins = ["inception_by_rule", "local_hub"]  # fixtures for tests of several rooms
ROOT = Path(__file__).parent.parent
hypothesis.settings.register_profile("no deadline", deadline=None)  # a loaded machine may take any time
hypothesis.settings.load_profile("no deadline")


# Files that take a minute and more: run first, so that no process waits for another at the end.
LONGEST = ("test_readme.py", "test_quickstart.py", "test_exactness.py", "test_faults.py", "test_train_generator.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True, scope="module")
def families_of_this_file(request):
    """Tokenizers that a test file brings along (``FAMILIES``) are in the table for its tests, and not for others'."""
    with pytest.MonkeyPatch.context() as patch:
        for name, row in getattr(request.module, "FAMILIES", {}).items():
            patch.setitem(TOKENIZERS, name, row)
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture
def tiny_config():
    """``tiny_config("sampler.depth=1", ...)`` -> configs/tiny.yaml with these overrides."""
    return lambda *overrides: vfmtok.load_config(ROOT / "configs/tiny.yaml", overrides)


@pytest.fixture
def tiny_tokenizer(tiny_config):
    """``tiny_tokenizer("sampler.depth=1", ...)`` -> that tokenizer, the same weights every time."""

    def build(*overrides: str):
        torch.manual_seed(0)
        return vfmtok.VFMTok(tiny_config(*overrides))

    return build


@pytest.fixture(scope="session")
def sample_set(tmp_path_factory) -> Path:
    """The embedded images as `vfmtok prepare sample` leaves them."""
    folder = tmp_path_factory.mktemp("sample_set") / "emoji"
    assert cli.main(["prepare", "sample", str(folder)]) == 0
    return folder
