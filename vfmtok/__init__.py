"""Image tokenizers on frozen vision foundation models, and the generators trained on them.

The public names below are imported when first used, so that ``import vfmtok`` and the command
line's help do not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_PUBLIC = {
    "VFMTok": "vfmtok.tokenizer.tokenizer",
    "Encoding": "vfmtok.tokenizer.tokenizer",
    "TokenizerOutput": "vfmtok.tokenizer.tokenizer",
    "TokenizerConfig": "vfmtok.config",
    "load_config": "vfmtok.config",
    "save_config": "vfmtok.config",
    "load_released": "vfmtok.hub.released",
    "to_released": "vfmtok.hub.released",
    "VFMTokError": "vfmtok.errors",
    "ConfigError": "vfmtok.errors",
    "WeightsError": "vfmtok.errors",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vfmtok' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__():
    return sorted(__all__)


if TYPE_CHECKING:
    from vfmtok.config import TokenizerConfig, load_config, save_config
    from vfmtok.errors import ConfigError, VFMTokError, WeightsError
    from vfmtok.hub.released import load_released, to_released
    from vfmtok.tokenizer.tokenizer import Encoding, TokenizerOutput, VFMTok
