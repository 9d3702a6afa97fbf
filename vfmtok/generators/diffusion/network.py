"""A diffusion transformer (DiT, arXiv 2212.09748) on the latents of images, trained by flow matching.

One network with switches, whose settings are three publications: LightningDiT (arXiv 2501.01423), REG (arXiv
2507.01467: a class token is denoised along, an inner state predicts an encoder's features) and DiT-DH (arXiv
2510.11690: a second, wide stack).

Times are noise levels: 0 is data, 1 noise. x_t = (1 - t) data + t noise; the velocity is noise minus data.

Shapes: B batch, C channels, S side of a latent, N = (S/patch)^2 tokens in row order, T tokens with the class token, D
width, Z width of the class token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vfmtok.code import Latents
from vfmtok.generators.diffusion.config import DiTConfig
from vfmtok.generators.diffusion.layers import Block, Output, TimeEmbedding, TokenInput, as_tokens, patch_embedding
from vfmtok.generators.diffusion.released import positions_of, released_names
from vfmtok.generators.diffusion.wide_head import WideHead
from vfmtok.layers.attention import xavier_uniform_
from vfmtok.layers.precision import at_least_float32
from vfmtok.layers.rotary import grid_rotary
from vfmtok.weights.name_maps import NameMap


@dataclass
class DiTOutput:
    """velocity (B,C,S,S) float32; with a class token its velocity (B,Z) float32; where it was asked for, per encoder
    the predicted features (B,T,dim)."""

    velocity: Tensor
    token_velocity: Tensor | None = None
    alignment: list[Tensor] | None = None


class Network(nn.Module):
    """See the top of the file; ``model.DiT`` is a generator of it.

    ``checkpoint_activations`` may be set at any time: recompute the blocks in the backward pass, keeping no
    activations of theirs.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        width, tokens = config.width, int(config.token_dim is not None)
        self.patches = patch_embedding(config, width)
        self.positions = nn.Parameter(torch.empty(1, tokens + config.side**2, width), requires_grad=False)
        self.time = TimeEmbedding(config, width)
        self.classes = nn.Embedding(config.num_classes + 1, width)
        self.token_input = TokenInput(config.token_dim, width) if tokens else None
        self.blocks = nn.ModuleList(Block(config, width, config.heads) for _ in range(config.depth))
        self.alignment = nn.ModuleList(_alignment_head(width, config.align_hidden, dim) for dim in config.align_dims)
        self.head = None if config.head_width is None else WideHead(config)
        self.output = Output(config, config.head_width or width)
        self.statistics = Statistics(config.code.shape, config.multiplier)
        self.rotary = self._rotary_tables("cpu")
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights. A new network's velocity is 0."""
        if self.config.init == "xavier":
            xavier_uniform_(self)
        convolutions = [self.patches] if self.head is None else [self.patches, self.head.patches]
        for convolution in convolutions:
            nn.init.xavier_uniform_(convolution.weight.flatten(1))
            nn.init.zeros_(convolution.bias)
        for table in (self.classes, self.time.mlp[0], self.time.mlp[2]):
            nn.init.normal_(table.weight, std=0.02)
        if self.time.fourier:
            nn.init.normal_(self.time.frequencies)
        zeros = [self.output.linear, self.output.modulation, *(block.modulation for block in self.layers)]
        for linear in zeros if self.output.token is None else [*zeros, self.output.token]:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.positions.copy_(positions_of(tuple(self.positions.shape), int(self.config.token_dim is not None)))

    def _apply(self, fn, recurse=True):
        """``to``, ``cuda``, ``to_empty``, ...: the tables follow the weights' device, never into a lower precision."""
        names = ("positions", "classes.weight", "statistics.mean", "statistics.std", "statistics.multiplier")
        names += ("time.frequencies",) if self.time.fourier else ()
        kept = {id(tensor) for name, tensor in self.state_dict(keep_vars=True).items() if name in names}

        def convert(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            lowered = id(tensor) in kept and found.dtype.itemsize < 4 <= tensor.dtype.itemsize
            return tensor.to(found.device, torch.float32) if lowered else found

        super()._apply(convert, recurse)
        self.rotary = self._rotary_tables(self.output.linear.weight.device)
        return self

    def _rotary_tables(self, device: torch.device | str) -> list[Tensor | None]:
        """Of both stacks: (2,T,1,E) float32; the class token is not turned."""
        config = self.config
        if not config.rope:
            return [None, None]
        tables: list[Tensor | None] = []
        for width, heads in ((config.width, config.heads), (config.head_width, config.head_heads)):
            if width is None:
                tables.append(None)
                continue
            table = grid_rotary(config.side, width // heads)  # (2,N,E)
            if config.token_dim is not None:
                unturned = torch.zeros_like(table[:, :1])  # (2,1,E)
                unturned[0] = 1
                table = torch.cat([unturned, table], dim=1)  # (2,T,E)
            tables.append(table[:, :, None].to(device))
        return tables

    @property
    def released(self) -> NameMap:
        """Its tensors' names in published files."""
        return released_names(self.config)

    @property
    def code(self) -> Latents:
        """What it learns and samples."""
        return self.config.code

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def null_class(self) -> int:
        """The label that stands for no class."""
        return self.config.num_classes

    @property
    def layers(self) -> list[nn.Module]:
        """What sharding gathers one at a time."""
        return [*self.blocks, *(() if self.head is None else self.head.blocks)]

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor, token: Tensor | None = None, align: bool = False
    ) -> DiTOutput:
        """Normalised noisy latents x (B,C,S,S) at noise levels t (B,) in [0,1], labels (B,) int64 in [0,num_classes],
        with a class token its noisy value (B,Z) -> DiTOutput. Raises ValueError for a token too many or missing.

        Args:
            align: also predict the encoder's features.
        """
        config = self.config
        if (token is None) != (self.token_input is None):
            raise ValueError(f"the class token must be (B,{config.token_dim}), or None without one")
        sign = -1 if config.time_runs == "to_data" else 1
        x = x.to(self.patches.weight.dtype)
        time = self.time(1 - t if sign < 0 else t)  # (B,D)
        condition = (time + self.classes(labels)).to(x.dtype)[:, None]  # (B,1,D)
        if config.condition_silu:
            condition = nn.functional.silu(condition)
        state = as_tokens(self.patches(x))  # (B,N,D)
        if token is not None:
            state = torch.cat([self.token_input(token.to(x.dtype)).to(state.dtype), state], dim=1)  # (B,T,D)
        state, features = (state + self.positions).to(x.dtype), None  # (B,T,D)
        for number, block in enumerate(self.blocks, 1):
            state = self._through(block, state, condition, self.rotary[0])  # (B,T,D)
            if align and number == config.align_depth:
                features = [at_least_float32(predict(state)) for predict in self.alignment]  # (B,T,dim) each
        if self.head is not None:
            state, condition = self.head.begin(x, state, time)  # 2 x (B,N,D2)
            for block in self.head.blocks:
                state = self._through(block, state, condition, self.rotary[1])  # (B,N,D2)
        velocity, token_velocity = self.output(state, condition)  # (B,C,S,S), (B,Z)
        return DiTOutput(sign * velocity, None if token_velocity is None else sign * token_velocity, features)

    def _through(self, block: Block, x: Tensor, condition: Tensor, rotary: Tensor | None) -> Tensor:
        if self.checkpoint_activations and self.training:
            return checkpoint(block, x, condition, rotary, use_reentrant=False)
        return block(x, condition, rotary)


class Statistics(nn.Module):
    """Mean and standard deviation of the raw latents, which the network sees normalised: multiplier * (x - mean) / std.

    Per element; per channel they are the same in every cell. They travel in checkpoints, with no published names.
    """

    def __init__(self, shape: tuple[int, ...], multiplier: float):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))
        self.register_buffer("multiplier", torch.full((), multiplier))
        self.were_set = False

    @property
    def known(self) -> bool:
        """Whether they are any latents', and not a new model's 0 and 1: they were set here, or before it was saved."""
        return self.were_set or bool((self.mean != 0).any() or (self.std != 1).any())

    @torch.no_grad()
    def set(self, mean: Tensor, std: Tensor, multiplier: float) -> None:
        """Mean and standard deviation (C,1,1) or (C,S,S)."""
        self.mean.copy_(mean.expand(self.mean.shape))
        self.std.copy_(std.expand(self.std.shape))
        self.multiplier.fill_(multiplier)  # weights that a training began with may have brought another one
        self.were_set = True

    def normalise(self, latents: Tensor) -> Tensor:
        """Raw (B,C,S,S) -> what the network sees, float32."""
        return (at_least_float32(latents) - self.mean) * (self.multiplier / self.std)

    def restore(self, latents: Tensor) -> Tensor:
        """The inverse of ``normalise``, in the dtype of ``latents``."""
        return latents * (self.std / self.multiplier) + self.mean


def _alignment_head(width: int, hidden: int, dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, dim)
    )
