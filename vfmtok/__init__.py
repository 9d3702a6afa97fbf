"""Image tokenizers on frozen vision foundation models, and the generators trained on them.

The public names below are imported when first used, so that ``import vfmtok`` and ``vfmtok --help`` do not wait for
PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

_PUBLIC = {
    "vfmtok.code": ("Ids", "Latents", "Segment"),
    "vfmtok.config": ("save_config",),
    "vfmtok.errors": ("ConfigError", "VFMTokError", "WeightsError"),
    "vfmtok.generators": ("build_generator",),
    "vfmtok.generators.diffusion.config": ("DiTConfig", "dit_config"),
    "vfmtok.generators.diffusion.flow": ("flow_loss",),
    "vfmtok.generators.diffusion.guidance": ("FlowGuidance",),
    "vfmtok.generators.diffusion.model": ("DiT",),
    "vfmtok.generators.diffusion.sampling": ("generate_latents",),
    "vfmtok.generators.drawing": ("generate",),
    "vfmtok.generators.gpt.config": ("GPTConfig", "gpt_config"),
    "vfmtok.generators.gpt.model": ("GPT", "GPTOutput"),
    "vfmtok.generators.inpainting": ("inpaint",),
    "vfmtok.generators.rar.config": ("RARConfig", "rar_config"),
    "vfmtok.generators.rar.model": ("RAR",),
    "vfmtok.pretrained.names": ("from_pretrained",),
    "vfmtok.pretrained.saving": ("push_to_hub", "save_pretrained"),
    "vfmtok.tokenizers": ("build_tokenizer", "load_config"),
    "vfmtok.tokenizers.editing": ("transfer_style",),
    "vfmtok.tokenizers.hita.config": ("HitaConfig",),
    "vfmtok.tokenizers.hita.model": ("Hita",),
    "vfmtok.tokenizers.vfm_vae.config": ("VFMVAEConfig",),
    "vfmtok.tokenizers.vfm_vae.model": ("VFMVAE",),
    "vfmtok.tokenizers.vfmae.config": ("VFMAEConfig",),
    "vfmtok.tokenizers.vfmae.model": ("VFMAE",),
    "vfmtok.tokenizers.vfmtok.config": ("TokenizerConfig", "VFMTokConfig"),
    "vfmtok.tokenizers.vfmtok.model": ("Encoding", "TokenizerOutput", "VFMTok"),
    "vfmtok.tokenizers.vqgan.config": ("VQGANConfig",),
    "vfmtok.tokenizers.vqgan.model": ("VQGAN",),
    "vfmtok.weights.name_maps": ("load_released", "to_released"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'vfmtok' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__():
    return sorted([*_HOME, "__version__"])


if TYPE_CHECKING:  # for editors
    from vfmtok.code import Ids as Ids
    from vfmtok.code import Latents as Latents
    from vfmtok.code import Segment as Segment
    from vfmtok.config import save_config as save_config
    from vfmtok.errors import ConfigError as ConfigError
    from vfmtok.errors import VFMTokError as VFMTokError
    from vfmtok.errors import WeightsError as WeightsError
    from vfmtok.generators import build_generator as build_generator
    from vfmtok.generators.diffusion.config import DiTConfig as DiTConfig
    from vfmtok.generators.diffusion.config import dit_config as dit_config
    from vfmtok.generators.diffusion.flow import flow_loss as flow_loss
    from vfmtok.generators.diffusion.guidance import FlowGuidance as FlowGuidance
    from vfmtok.generators.diffusion.model import DiT as DiT
    from vfmtok.generators.diffusion.sampling import generate_latents as generate_latents
    from vfmtok.generators.drawing import generate as generate
    from vfmtok.generators.gpt.config import GPTConfig as GPTConfig
    from vfmtok.generators.gpt.config import gpt_config as gpt_config
    from vfmtok.generators.gpt.model import GPT as GPT
    from vfmtok.generators.gpt.model import GPTOutput as GPTOutput
    from vfmtok.generators.inpainting import inpaint as inpaint
    from vfmtok.generators.rar.config import RARConfig as RARConfig
    from vfmtok.generators.rar.config import rar_config as rar_config
    from vfmtok.generators.rar.model import RAR as RAR
    from vfmtok.pretrained.names import from_pretrained as from_pretrained
    from vfmtok.pretrained.saving import push_to_hub as push_to_hub
    from vfmtok.pretrained.saving import save_pretrained as save_pretrained
    from vfmtok.tokenizers import build_tokenizer as build_tokenizer
    from vfmtok.tokenizers import load_config as load_config
    from vfmtok.tokenizers.editing import transfer_style as transfer_style
    from vfmtok.tokenizers.hita.config import HitaConfig as HitaConfig
    from vfmtok.tokenizers.hita.model import Hita as Hita
    from vfmtok.tokenizers.vfm_vae.config import VFMVAEConfig as VFMVAEConfig
    from vfmtok.tokenizers.vfm_vae.model import VFMVAE as VFMVAE
    from vfmtok.tokenizers.vfmae.config import VFMAEConfig as VFMAEConfig
    from vfmtok.tokenizers.vfmae.model import VFMAE as VFMAE
    from vfmtok.tokenizers.vfmtok.config import TokenizerConfig as TokenizerConfig
    from vfmtok.tokenizers.vfmtok.config import VFMTokConfig as VFMTokConfig
    from vfmtok.tokenizers.vfmtok.model import Encoding as Encoding
    from vfmtok.tokenizers.vfmtok.model import TokenizerOutput as TokenizerOutput
    from vfmtok.tokenizers.vfmtok.model import VFMTok as VFMTok
    from vfmtok.tokenizers.vqgan.config import VQGANConfig as VQGANConfig
    from vfmtok.tokenizers.vqgan.model import VQGAN as VQGAN
    from vfmtok.weights.name_maps import load_released as load_released
    from vfmtok.weights.name_maps import to_released as to_released
