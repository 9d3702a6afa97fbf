"""The vision foundation model behind one small adapter: images in, feature levels out.

Any timm model that can return intermediate features works; ``encoders/named.py`` gives the models of the field short
names. timm takes seconds to import, as long as PyTorch: it is imported where a model is built, so that configurations,
tables and generators wait for nothing.

Shapes: B batch, S image side, N cells of a level, C its channels.
"""

import contextlib
import copy
import dataclasses
import itertools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from vfmtok.config import closest_match
from vfmtok.encoders.config import EncoderConfig
from vfmtok.encoders.named import ENCODERS, EncoderFacts
from vfmtok.encoders.released import dinov2_official_shapes, efficientnet_from_pytorch, siglip_from_transformers
from vfmtok.encoders.vit_levels import read_vit
from vfmtok.errors import ConfigError, WeightsError
from vfmtok.layers.positions import resample_by_scale, resample_plainly
from vfmtok.layers.precision import at_least_float32
from vfmtok.layers.resize import resize_by, resize_square
from vfmtok.weights import reading
from vfmtok.weights.name_maps import check_tensors


class Encoder(nn.Module):
    """A timm backbone as a source of feature levels.

    Attributes:
        config: the resolved ``EncoderConfig``: levels, mean, std, resampling, weights' SHA-256.
        widths: channels of every level.
        grids: (height, width) in cells of every level at ``config.image_size``.
        available_levels: how many the whole backbone has.
        has_class_token: whether its model has one, as ViTs mostly have.

    Frozen (``config.frozen``), it stays in eval mode, takes no gradient and builds no graph.

    Raises:
        ConfigError: timm does not know the name, or the levels are missing or not there.
        WeightsError: the named weights can't be found or are of another model.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        facts = ENCODERS.get(config.name, EncoderFacts(config.name, ()))
        with same_weights_always() if config.frozen and config.starts_random else contextlib.nullcontext():
            self.backbone = _create_backbone(facts.timm_name, config.name)
        self.available_levels = len(self.backbone.feature_info)
        self.levels = _choose_levels(config, facts, self.available_levels)
        published = self.backbone.pretrained_cfg
        self.config = dataclasses.replace(
            config,
            levels=self.levels,
            position_resampling=config.position_resampling or facts.position_resampling,
            mean=tuple(published["mean"]) if config.mean is None else config.mean,
            std=tuple(published["std"]) if config.std is None else config.std,
        )
        self.register_buffer("mean", torch.tensor(self.config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.config.std).view(1, 3, 1, 1), persistent=False)

        # Weights are published for the whole model at its own input size: this storage-free twin
        # (in a list, to stay out of the module tree) is what they are checked against.
        self._published_form = [_meta_copy(self.backbone)]
        is_vit = hasattr(self.backbone, "patch_embed") and hasattr(self.backbone, "norm")
        self._ends_with_norm = is_vit and config.final_norm and self.levels[-1] == len(self.backbone.feature_info)
        self._reads_itself = self._reads_blocks(config)  # else timm does
        self._fit_to_use()
        self.widths, self.grids = self._probe_levels()
        if config.frozen:
            self.requires_grad_(False)
        self._has_weights = not self.backbone.state_dict()  # a fixed function has none to miss
        self._warned = False
        self.register_load_state_dict_post_hook(_note_weights)
        self._load_configured_weights()
        self.train()

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B,3,H,W) in [-1,1] -> one (B,N,C) tensor per level, in the order of the levels.

        Another size than ``config.image_size`` squared is resized to it by ``config.resize``; with
        ``config.input_scale`` every size is resized by that factor, and N follows it. The last block's level is taken
        after the final norm.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            return self._read_levels(self._normalise(images))

    def with_gradient(self, images: Tensor) -> list[Tensor]:
        """``forward`` with the graph to the images kept even if frozen: for losses measured in these features."""
        return self._read_levels(self._normalise(images))

    @property
    def has_class_token(self) -> bool:
        return getattr(self.backbone, "cls_token", None) is not None

    def with_class_token(self, images: Tensor) -> list[Tensor]:
        """``forward`` with the class token first: one (B,1+N,C) per level. A model that has no class token gets the
        mean of the level's cells in its place."""
        if not self.has_class_token:
            return [torch.cat([cells.mean(1, keepdim=True), cells], dim=1) for cells in self(images)]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            levels = self._read_maps(self.backbone, self._normalise(images), return_prefix_tokens=True)
            tokens = [torch.cat([prefix[:, :1], cells.flatten(2).transpose(1, 2)], dim=1) for cells, prefix in levels]
            if self._ends_with_norm:
                tokens[-1] = self.backbone.norm(tokens[-1])
            return tokens

    def _normalise(self, images: Tensor) -> Tensor:
        unnoticed = self.config.weights != "random" and not self._has_weights and not self._warned
        if self.config.frozen and unnoticed:
            self._warned = True
            warnings.warn(
                f"the frozen encoder '{self.config.name}' has RANDOM weights, its features mean nothing: "
                "set encoder.weights to a file or to 'hub', or call load_official",
                stacklevel=3,
            )
        config, images = self.config, at_least_float32(images)  # antialiasing has no bfloat16 on CPUs
        if config.input_scale is None:
            images = resize_square(images, config.image_size, config.resize)  # (B,3,S,S)
        else:
            images = resize_by(images, config.input_scale, config.resize)
        images = (images.clamp(-1, 1) + 1) / 2  # (B,3,S,S) in [0,1]
        images = (images - self.mean) / self.std
        weights = [*self.backbone.parameters(), self.mean]  # torch 2.4 can't trace next() with a default
        return images.to(weights[0].dtype)

    def _read_levels(self, images: Tensor) -> list[Tensor]:
        maps = self._read_maps(self.backbone, images)  # L x (B,C,h,w)
        features = [feature_map.flatten(2).transpose(1, 2) for feature_map in maps]  # L x (B,N,C)
        if self._ends_with_norm:
            features[-1] = self.backbone.norm(features[-1])
        return features

    def _read_maps(self, backbone: nn.Module, images: Tensor, **options: bool) -> list[Tensor]:
        if self._reads_itself:
            return read_vit(backbone, images, self.levels, self._resampled, **options)
        return backbone.forward_intermediates(
            images,
            indices=[level - 1 for level in self.levels],
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
            **options,
        )

    def train(self, mode: bool = True) -> "Encoder":
        return super().train(mode and not self.config.frozen)

    def _reads_blocks(self, config: EncoderConfig) -> bool:
        """Whether blocks are read here: timm gives no embeddings, and resamples positions in one way only."""
        is_vit = all(hasattr(self.backbone, name) for name in ("patch_embed", "pos_embed", "blocks", "norm_pre"))
        if self.levels[0] == 0 and not is_vit:
            raise ConfigError(f"encoder.levels: '{config.name}' is no plain ViT, it has no level 0")
        return is_vit and (self.levels[0] == 0 or config.input_scale is not None)

    # ---- fitting the backbone to its use ---------------------------------------------------

    def _fit_to_use(self) -> None:
        """Cut what no level needs, and bring position embeddings to ``config.image_size``."""
        indices = [level - 1 for level in self.levels if level]
        self.backbone.prune_intermediate_layers(indices, prune_norm=not self._ends_with_norm, prune_head=True)
        fixed = self.config.input_scale is None  # else the table stays as it is published
        if fixed and hasattr(self.backbone, "set_input_size"):  # a convolutional backbone takes any size
            self.backbone.set_input_size(img_size=(self.config.image_size, self.config.image_size))

    def _probe_levels(self) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Widths and grids as the backbone really returns them, computed on storage-free tensors."""
        size = self.config.image_size
        patch = getattr(getattr(self.backbone, "patch_embed", None), "patch_size", (1, 1))[0]
        if size % patch:
            raise ConfigError(f"encoder.image_size must be a multiple of the patch size {patch}, got {size}")
        try:
            maps = self._read_maps(_meta_copy(self.backbone).eval(), torch.empty(1, 3, size, size, device="meta"))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"encoder '{self.config.name}' does not run at {size} px: {error}") from None
        return tuple(m.shape[1] for m in maps), tuple((m.shape[2], m.shape[3]) for m in maps)

    # ---- weights ---------------------------------------------------------------------------

    def load_official(self, state_dict: dict[str, Tensor]) -> None:
        """Load weights under the names their publisher gave them, strictly; tensors are copied.

        Meta's DINOv2 files are checked name by name; for other models timm's own conversion
        names them (OpenAI CLIP, OpenCLIP, DINOv3, timm itself, ...). Classification heads are left out.

        Raises:
            WeightsError: tensors missing, unexpected or of another shape; nothing is loaded then.
        """
        published = self._published_form[0]
        shapes = {name: tensor.shape for name, tensor in published.state_dict().items()}
        model = f"encoder '{self.config.name}'"
        architecture = published.pretrained_cfg["architecture"]
        if "dinov2" in architecture and state_dict.keys() & {"mask_token", "register_tokens"}:
            check_tensors(state_dict, dinov2_official_shapes(shapes), model)
        if "_conv_stem.weight" in state_dict:
            state_dict = efficientnet_from_pytorch(state_dict, shapes)
        if any(name.startswith("vision_model.") for name in state_dict) and "siglip" in architecture:
            state_dict = siglip_from_transformers(state_dict)
        state_dict = _without_head(state_dict, published.pretrained_cfg)
        if state_dict.keys() != shapes.keys():
            try:
                state_dict = _timm_conversion(published)(state_dict, published)
            except Exception as error:  # timm trusts the file: a wrong one fails anywhere
                raise WeightsError(f"timm cannot read these weights as those of {model}: {error}") from None
            state_dict = _without_head(state_dict, published.pretrained_cfg)
        check_tensors(state_dict, shapes, model)
        self._copy(state_dict)
        self._has_weights = True
        self.config = dataclasses.replace(self.config, weights_sha256=None)  # of a file, if the caller knows it

    def note_weights(self) -> None:
        """Say that somebody else copied weights in: the encoder no longer warns of random ones."""
        self._has_weights = True

    def _copy(self, state_dict: dict[str, Tensor]) -> None:
        """Copy tensors of the published form into the backbone: cut, and at its own input size."""
        table = self.backbone.state_dict().get("pos_embed")
        if table is not None and table.shape != state_dict["pos_embed"].shape:
            state_dict = {**state_dict, "pos_embed": self._resample_positions(state_dict["pos_embed"])}
        used = self.backbone.state_dict()
        for name in used:
            if used[name].shape != state_dict[name].shape:  # relative positions and the like
                raise WeightsError(
                    f"encoder '{self.config.name}': '{name}' has another size at {self.config.image_size} px than "
                    "as published, and no convention to resample it is known: use the published encoder.image_size"
                )
        self.backbone.load_state_dict({name: state_dict[name] for name in used})

    def _resample_positions(self, table: Tensor) -> Tensor:
        """(1, prefix + G*G, C) at the published size -> (1, prefix + g*g, C) by the recorded convention."""
        return self._resampled(table, self._published_form[0], self.backbone.patch_embed.grid_size)

    def _resampled(self, table: Tensor, backbone: nn.Module, new: tuple[int, int]) -> Tensor:
        """The position table of ``backbone`` for another grid, by the recorded convention."""
        prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
        old = backbone.patch_embed.grid_size
        if old == new:
            return table
        if self.config.position_resampling == "size":
            from timm.layers import resample_abs_pos_embed

            return resample_abs_pos_embed(table, new_size=new, old_size=old, num_prefix_tokens=prefix)
        if self.config.position_resampling == "scale":
            return torch.cat([table[:, :prefix], resample_by_scale(table[:, prefix:], new[0])], dim=1)
        return torch.cat([table[:, :prefix], resample_plainly(table[:, prefix:], old, new)], dim=1)

    def _load_configured_weights(self) -> None:
        source = self.config.weights
        if self.config.starts_random:
            return
        if source == "hub":
            path = reading.download_timm(self.backbone.pretrained_cfg, self.config.name)
        elif source == "auto":
            path = reading.find_encoder(self.backbone.pretrained_cfg, self.config.name)
        elif source == "package":
            path = reading.find_in_package(self.config.name)
        else:
            path = Path(source).expanduser()
        digest = reading.sha256(path)
        wanted = self.config.weights_sha256
        if wanted not in (None, digest):
            raise WeightsError(f"{path} has SHA-256 {digest}, the configuration asks for {wanted}")
        self.load_official(reading.read(path))
        self.config = dataclasses.replace(self.config, weights_sha256=digest)


# --------------------------------------------------------------------------------------
# timm
# --------------------------------------------------------------------------------------


@contextlib.contextmanager
def same_weights_always() -> Iterator[None]:
    """Checkpoints leave a frozen encoder out: random weights must come back alike, or old ids mean nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _create_backbone(timm_name: str, name: str) -> nn.Module:
    import timm

    architecture = timm_name.split(".")[0]
    if not timm.is_model(architecture):
        hint = closest_match(name, [*ENCODERS, *timm.list_models()])
        raise ConfigError(f"encoder.name: neither this package nor timm knows '{name}'{hint}")
    backbone = timm.create_model(timm_name, pretrained=False, num_classes=0)
    if not (hasattr(backbone, "forward_intermediates") and hasattr(backbone, "prune_intermediate_layers")):
        raise ConfigError(f"encoder.name: timm's '{name}' does not offer intermediate features")
    return backbone


def _choose_levels(config: EncoderConfig, facts: EncoderFacts, available: int) -> tuple[int, ...]:
    levels = config.levels or facts.levels
    if not levels:
        raise ConfigError(f"encoder.levels: say which of the {available} levels of '{config.name}' to read")
    if levels[-1] > available:
        raise ConfigError(f"encoder.levels: '{config.name}' has {available} levels, got {levels}")
    return levels


def _note_weights(encoder: Encoder, _) -> None:
    """After ``load_state_dict``: a checkpoint that carries the encoder brings its weights."""
    encoder.note_weights()


def _meta_copy(module: nn.Module) -> nn.Module:
    """A copy whose tensors have shapes but no storage."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    memo = {}
    for tensor in tensors:
        meta = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(meta, False) if isinstance(tensor, nn.Parameter) else meta
    return copy.deepcopy(module, memo)


def _timm_conversion(backbone: nn.Module):
    """timm's converter of foreign names for this architecture, or the identity if it has none."""
    module = sys.modules[type(backbone).__module__]
    return getattr(module, "checkpoint_filter_fn", lambda state_dict, model: state_dict)


def _without_head(state_dict: dict[str, Tensor], pretrained_cfg: dict) -> dict[str, Tensor]:
    """The tensors without the classifier, which no feature needs."""
    heads = pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    return {k: v for k, v in state_dict.items() if not k.startswith(tuple(f"{head}." for head in heads))}
