"""Image tokenizers on frozen vision foundation models, and the generators trained on them.

The public names below are imported when first used, so that ``import vfmtok`` and the command
line's help do not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_PUBLIC = {
    "vfmtok.config": ("TokenizerConfig", "load_config", "save_config"),
    "vfmtok.errors": ("ConfigError", "VFMTokError", "WeightsError"),
    "vfmtok.generator.generate": ("generate",),
    "vfmtok.generator.gpt": ("GPT", "GPTConfig", "GPTOutput", "gpt_config"),
    "vfmtok.hub.names": ("from_pretrained",),
    "vfmtok.hub.released": ("load_released", "to_released"),
    "vfmtok.hub.saving": ("push_to_hub", "save_pretrained"),
    "vfmtok.tokenizer.tokenizer": ("Encoding", "TokenizerOutput", "VFMTok"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'vfmtok' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__():
    return sorted([*_HOME, "__version__"])


if TYPE_CHECKING:  # for editors
    from vfmtok.config import TokenizerConfig as TokenizerConfig
    from vfmtok.config import load_config as load_config
    from vfmtok.config import save_config as save_config
    from vfmtok.errors import ConfigError as ConfigError
    from vfmtok.errors import VFMTokError as VFMTokError
    from vfmtok.errors import WeightsError as WeightsError
    from vfmtok.generator.generate import generate as generate
    from vfmtok.generator.gpt import GPT as GPT
    from vfmtok.generator.gpt import GPTConfig as GPTConfig
    from vfmtok.generator.gpt import GPTOutput as GPTOutput
    from vfmtok.generator.gpt import gpt_config as gpt_config
    from vfmtok.hub.names import from_pretrained as from_pretrained
    from vfmtok.hub.released import load_released as load_released
    from vfmtok.hub.released import to_released as to_released
    from vfmtok.hub.saving import push_to_hub as push_to_hub
    from vfmtok.hub.saving import save_pretrained as save_pretrained
    from vfmtok.tokenizer.tokenizer import Encoding as Encoding
    from vfmtok.tokenizer.tokenizer import TokenizerOutput as TokenizerOutput
    from vfmtok.tokenizer.tokenizer import VFMTok as VFMTok
