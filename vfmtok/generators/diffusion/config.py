"""What can be set in a DiT, how latents are drawn from it, and the named sizes of three publications."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from vfmtok.code import Code, Latents
from vfmtok.config import require, require_not_negative, require_positive, require_share
from vfmtok.encoders.config import EncoderConfig
from vfmtok.families import config_of_size


@dataclass(frozen=True)
class DiTConfig:
    """Shape, flow and losses of a DiT, by default LightningDiT-XL/1 on 32 x 16 x 16 latents.

    ``time_runs`` is about the network's own weights only: outside, times are always noise levels (0 data, 1 noise) and
    velocities are noise minus data.
    """

    kind: Literal["diffusion"] = "diffusion"
    in_channels: int = 32
    size: int = 16  # of a latent's side
    patch: int = 1
    width: int = 1152
    depth: int = 28
    heads: int = 16
    mlp_ratio: float = 4.0
    num_classes: int = 1000  # one more row, the last, embeds "no class" (label dropout, guidance)
    time_runs: Literal["to_data", "to_noise"] = "to_data"  # to_data: the network is called with 1 - t, and negated
    norm: Literal["rms", "layer"] = "rms"
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    rope: bool = True
    qk_norm: bool = True  # without it, NaN after some 200,000 steps is the most reported failure of LightningDiT
    shift: bool = True  # whether the modulation of the blocks shifts, or only scales and gates
    time_embedding: Literal["cosine", "fourier"] = "cosine"
    condition_silu: bool = False  # SiLU of time + label before the blocks, which apply it once more
    init: Literal["xavier", "torch"] = "xavier"
    token_dim: int | None = None  # REG: width of a class token that is denoised along
    align_depth: int | None = None  # REG: the block, counted from 1, whose state predicts the encoder's features
    align_dims: tuple[int, ...] = ()  # widths of these features
    align_hidden: int = 2048
    align_encoder: EncoderConfig | None = None  # of training: its class token, and what is aligned with, by images
    head_width: int | None = None  # DiT-DH: a second, wide stack behind the first
    head_depth: int = 2
    head_heads: int = 16
    label_dropout_p: float = 0.1  # share of the samples trained without their class
    times: Literal["logit-normal", "uniform"] = "logit-normal"  # distribution of the noise levels in training
    times_end: float = 1.0  # where it is cut off
    time_shift: float = 1.0  # a: noise levels t become a t / (1 + (a - 1) t)
    uniform_from_step: int | None = None  # from this step on times are uniform (LightningDiT's last stretch)
    cosine_weight: float = 1.0  # of 1 - cosine similarity of velocities over the channels, in the loss
    token_weight: float = 0.03  # of the class token's velocity
    align_weight: float = 0.5  # of the alignment
    normalised: Literal["channel", "position", "none"] = "channel"  # by statistics per channel, or channel and place
    multiplier: float = 1.0  # the network sees multiplier * (latent - mean) / standard deviation; none: 0 and 1

    def __post_init__(self):
        sizes = ("in_channels", "size", "patch", "width", "depth", "heads", "mlp_ratio", "num_classes")
        require_positive(self, "", *sizes, "align_hidden", "head_depth", "head_heads", "time_shift", "multiplier")
        require_not_negative(self, "", "cosine_weight", "token_weight", "align_weight")
        require(self.size % self.patch == 0, "size", f"must be a multiple of patch = {self.patch}", self.size)
        stacks = [("width", self.width, "heads", self.heads)]
        if self.head_width is not None:
            stacks.append(("head_width", self.head_width, "head_heads", self.head_heads))
        for name, width, heads_name, heads in stacks:
            step = heads * (4 if self.rope else 1)  # rotary positions turn pairs of each half of a head
            fits = width > 0 and width % step == 0 and width % 4 == 0
            rule = f"must be a multiple of 4 and of {step // heads} times {heads_name} = {heads}"
            require(fits, name, rule, width)
        require(self.token_dim is None or self.token_dim > 0, "token_dim", "must be positive", self.token_dim)
        wide_with_token = self.head_width is not None and (self.token_dim is not None or self.align_dims)
        require(not wide_with_token, "head_width", "goes with neither a class token nor alignment", self.head_width)
        aligned = self.align_depth is not None
        require(aligned == bool(self.align_dims), "align_depth", "goes with align_dims", self.align_depth)
        inside = not aligned or 1 <= self.align_depth <= self.depth
        require(inside, "align_depth", f"must be a block from 1 to depth = {self.depth}", self.align_depth)
        require(all(dim > 0 for dim in self.align_dims), "align_dims", "must be positive", self.align_dims)
        require_share(self.label_dropout_p, "label_dropout_p")
        require(0 < self.times_end <= 1, "times_end", "must be in (0,1]", self.times_end)
        first = self.uniform_from_step
        require(first is None or first >= 0, "uniform_from_step", "must be a step from 0", first)

    @classmethod
    def fields_of_code(cls, code: Code) -> dict[str, int]:
        """What a DiT must have to learn this code. Raises ConfigError where none can."""
        require(isinstance(code, Latents), "generator.kind diffusion", "learns latents", code)
        square = len(code.shape) == 3 and code.shape[1] == code.shape[2]
        require(square, "generator.kind diffusion", "learns latents on a square grid", code)
        return {"in_channels": code.shape[0], "size": code.shape[1]}

    @classmethod
    def fields_of_side(cls, side: int) -> dict[str, int]:
        """What --latent-size sets."""
        return {"size": side}

    @property
    def code(self) -> Latents:
        """What it learns and samples."""
        return Latents((self.in_channels, self.size, self.size))

    @property
    def learns_from_images(self) -> bool:
        """With a class token or alignment: both are an encoder's features of the images."""
        return self.token_dim is not None or bool(self.align_dims)

    @property
    def side(self) -> int:
        """Patches in a row."""
        return self.size // self.patch

    def hidden(self, width: int) -> int:
        """F of a stack of this width, inside its feed-forward blocks."""
        full = int(width * self.mlp_ratio)
        return int(2 / 3 * full) if self.mlp == "swiglu" else full


# --------------------------------------------------------------------------------------
# Settings of sampling
# --------------------------------------------------------------------------------------


ABOUT = {  # what these settings do, for people; the classes below differ in their defaults
    "method": {"help": "euler, heun or sde, the only one that adds noise on its way"},
    "steps": {"help": "from noise to data; heun evaluates the network twice in each"},
    "shift": {"help": "above 1: more steps near noise; none: as trained"},
    "last": {"help": "noise level at which to stop"},
}


@dataclass(frozen=True)
class FlowSampling:
    """The settings of ``DiT.sample``; the defaults are LightningDiT's steps, without guidance.

    How each setting works is told in ``generate_latents`` and ``FlowGuidance``.
    """

    cfg_scale: float = field(default=1.0, metadata={"label": "Guidance", "help": "1 is none", "range": (1, 10, 0.1)})
    method: Literal["euler", "heun", "sde"] = field(default="euler", metadata=ABOUT["method"])
    steps: int = field(default=249, metadata=ABOUT["steps"])
    shift: float | None = field(default=1 / 0.3, metadata=ABOUT["shift"])
    last: float = field(default=0.0, metadata=ABOUT["last"])
    cfg_low: float = field(default=0.0, metadata={"help": "guide from this noise level on"})
    cfg_high: float = field(default=1.0, metadata={"help": "guide up to this noise level"})
    cfg_channels: int | None = field(default=None, metadata={"help": "guide the first so many channels; none: all"})
    cfg_token_scale: float | None = field(default=None, metadata={"help": "of the class token; none: as the guidance"})
    cfg_weaker: str | None = field(default=None, metadata={"help": "autoguidance: the name of the weaker model"})

    def __post_init__(self):
        require(self.method in ("euler", "heun", "sde"), "method", "must be euler, heun or sde", self.method)
        fewest = 2 if self.method == "sde" else 1
        require(self.steps >= fewest, "steps", f"must be {fewest} or more with {self.method}", self.steps)
        require(self.shift is None or 0 < self.shift < math.inf, "shift", "must be positive", self.shift)
        require(0 <= self.last < 1, "last", "must be in [0,1)", self.last)
        require(self.method != "sde" or self.last == 0, "last", "must be 0 with sde, which ends there", self.last)
        require(0 <= self.cfg_scale < math.inf, "cfg_scale", "must be a number from 0", self.cfg_scale)
        for name in ("cfg_low", "cfg_high"):
            require(0 <= getattr(self, name) <= 1, name, "must be in [0,1]", getattr(self, name))
        require(self.cfg_low <= self.cfg_high, "cfg_low", f"must be at most cfg_high = {self.cfg_high}", self.cfg_low)
        channels = self.cfg_channels
        require(channels is None or channels > 0, "cfg_channels", "must be positive (none: all)", channels)
        finite = self.cfg_token_scale is None or math.isfinite(self.cfg_token_scale)
        require(finite, "cfg_token_scale", "must be a number", self.cfg_token_scale)

    @property
    def guidance(self) -> str:
        """All that the cfg_ fields say, for names of results and folders."""
        if self.cfg_scale == 1:
            return "no CFG"
        parts = [f"{'CFG' if self.cfg_weaker is None else 'autoguidance'} {self.cfg_scale:g}"]
        if self.cfg_weaker is not None:
            parts.append(f"by {self.cfg_weaker}")
        if (self.cfg_low, self.cfg_high) != (0, 1):
            parts.append(f"t {self.cfg_low:g} to {self.cfg_high:g}")
        if self.cfg_channels is not None:
            parts.append(f"{self.cfg_channels} channels")
        if self.cfg_token_scale is not None:
            parts.append(f"class token {self.cfg_token_scale:g}")
        return ", ".join(parts)


@dataclass(frozen=True)
class TokenFlowSampling(FlowSampling):
    """With a class token: REG's steps."""

    method: Literal["euler", "heun", "sde"] = field(default="sde", metadata=ABOUT["method"])
    steps: int = field(default=250, metadata=ABOUT["steps"])
    shift: float | None = field(default=1.0, metadata=ABOUT["shift"])


@dataclass(frozen=True)
class WideHeadSampling(FlowSampling):
    """With a wide head: VFMTok2's steps, which leave a little of the noise."""

    steps: int = field(default=99, metadata=ABOUT["steps"])
    shift: float | None = field(default=None, metadata=ABOUT["shift"])
    last: float = field(default=0.001, metadata=ABOUT["last"])


# --------------------------------------------------------------------------------------
# Named sizes
# --------------------------------------------------------------------------------------


def _lightning(width: int, depth: int, heads: int, patch: int) -> dict[str, Any]:
    shape = {"width": width, "depth": depth, "heads": heads, "patch": patch}
    return {**shape, "qk_norm": False}


DINOV2 = {  # ViT-B/14 without registers, at 224 px: 16 x 16 cells and the class token
    "name": "dinov2_vitb14", "image_size": 224, "levels": [12], "weights": "auto", "position_resampling": "size",
}  # fmt: skip


def _reg(width: int, depth: int, heads: int, patch: int, align_depth: int) -> dict[str, Any]:
    shape = {"width": width, "depth": depth, "heads": heads, "patch": patch}
    if patch == 2:  # on the latents of SD-VAE
        shape |= {"in_channels": 4, "size": 32}
    network = {"time_runs": "to_noise", "norm": "layer", "mlp": "gelu", "rope": False, "qk_norm": False}
    token = {"token_dim": 768, "align_depth": align_depth, "align_dims": [768], "align_encoder": DINOV2}
    return {**shape, **network, **token, "times": "uniform", "cosine_weight": 0.0}


def _wide_head(width: int, depth: int, heads: int) -> dict[str, Any]:
    shape = {"width": width, "depth": depth, "heads": heads, "head_width": 2048, "head_depth": 2, "head_heads": 16}
    network = {"time_runs": "to_noise", "qk_norm": False, "time_embedding": "fourier", "condition_silu": True}
    times = {"times": "uniform", "times_end": 0.999, "time_shift": 4.0}
    return {**shape, **network, "init": "torch", **times, "cosine_weight": 0.0, "normalised": "position"}


DIT_SIZES = {  # parameters at 32 x 16 x 16 latents and 1000 classes, with the fixed tables
    "LightningDiT-B/1": _lightning(768, 12, 12, 1),  # 131M
    "LightningDiT-B/2": _lightning(768, 12, 12, 2),
    "LightningDiT-L/2": _lightning(1024, 24, 16, 2),  # 458M
    "LightningDiT-XL/1": _lightning(1152, 28, 16, 1),  # 675M
    "LightningDiT-XL/2": _lightning(1152, 28, 16, 2),
    "LightningDiT-1p0B/1": _lightning(1536, 24, 24, 1),  # 1.0B
    "LightningDiT-1p0B/2": _lightning(1536, 24, 24, 2),
    "LightningDiT-1p6B/1": _lightning(1792, 28, 28, 1),  # 1.6B
    "LightningDiT-1p6B/2": _lightning(1792, 28, 28, 2),
    "REG-S/2": _reg(384, 12, 6, 2, 8),  # 40M
    "REG-B/2": _reg(768, 12, 12, 2, 4),  # 139M
    "REG-L/2": _reg(1024, 24, 16, 2, 8),  # 468M
    "REG-XL/2": _reg(1152, 28, 16, 2, 8),  # 685M
    "REG-XL/1": _reg(1152, 28, 16, 1, 8),  # 685M
    "DiTDH-S": _wide_head(384, 12, 6),  # 193M
    "DiTDH-XL": _wide_head(1152, 28, 16),  # 835M
}


def dit_config(preset: str, **overrides: Any) -> DiTConfig:
    """The configuration of a named size, with fields of ``DiTConfig`` overridden (see ``config_of_size``)."""
    return config_of_size(DiTConfig, DIT_SIZES, preset, overrides)
