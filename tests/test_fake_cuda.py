"""Every network on a fake CUDA device: nothing is left on the host, and nothing makes the host wait for the GPU.

In float32 and under bfloat16 autocast. A new family of tokenizers, generators, quantizers or discriminators adds a row
to the table below, or ``test_every_family_is_here`` fails.
"""

import dataclasses

import pytest
import torch
from fake_cuda import FakeCuda
from tiny_gpt import tiny_config as tiny_gpt
from torch.utils._pytree import tree_leaves

import vfmtok
from vfmtok.code import Latents
from vfmtok.generators import GENERATORS, build_generator
from vfmtok.generators.counter_random import Draws, exponentials
from vfmtok.generators.kv_cache import CACHES
from vfmtok.layers.equivariance import Transformation
from vfmtok.tokenizers import TOKENIZERS
from vfmtok.tokenizers.contract import code_of

pytestmark = pytest.mark.filterwarnings("ignore:the frozen encoder", "ignore:the DINO discriminator")

TINY_VFM_VAE = (
    "image_size=64", "latent_size=4", "level_width=16", "encoder.name=test_vit", "encoder.image_size=128",
    "encoder.levels=[0, 3, 6]", "bottleneck.channels=16", "expansion=4", "decoder.widths=[64, 32, 16, 8]",
    "decoder.injected=[32, 16, 8, 8]", "decoder.kernels=[5, 5, 7, 7]", "decoder.blurs=[3, 3, 3, 5]",
    "decoder.layers=[2, 1, 1, 1]", "decoder.attentions=[1, 0, 0, 0]", "decoder.style_dim=32",
)  # fmt: skip
# name -> (configuration file, overrides, side of the images)
TOKENIZER_CASES = {
    "vfmtok": ("configs/tiny.yaml", (), 32),
    "vfmtok, windows": ("configs/tiny.yaml", ("sampler.attention=windowed",), 32),
    "vfmtok, front": ("configs/tiny.yaml", ("decoder.register_position=front", "decoder.shared=false"), 32),
    "vfmtok, fsq": ("configs/tiny.yaml", ("quantizer={kind: fsq, levels: [4, 4, 4]}",), 32),
    "vfmtok, full size": ("configs/vit_transformer.yaml", ("quantizer.entropy_weight=0.1",), 336),
    "hita": (
        "configs/hita_vqgan_ultra.yaml",
        ("encoder.name=test_vit", "encoder.image_size=64", "encoder.levels=[6]", "dim=64", "heads=2", "mlp_dim=64",
         "num_holistic=6", "image_size=64", "patch_encoder.channels=32", "pixel_decoder.channels=32"),
        64,
    ),
    "vfmae": (
        "configs/vfmae/vfmae.yaml",
        ("encoder.name=test_vit", "encoder.image_size=64", "encoder.levels=[2,4,6]", "dim=64", "image_size=64",
         "sampler.num_tokens=16", "decoder.mlp_dim=64", "pixel_decoder.channels=32"),
        64,
    ),
    "vfmae, full size": ("configs/vfmae/vfmae.yaml", (), 256),
    "vfm_vae": ("configs/vfm_vae/stage1.yaml", TINY_VFM_VAE, 64),
    "vfm_vae, codebooks": (
        "configs/vfm_vae/stage1.yaml",
        (*TINY_VFM_VAE, "bottleneck={kind: multi-codebook, codebooks: 2, channels: 8, entropy_weight: 0.1}",
         "decoder.noise=true", "projection=conv"),
        64,
    ),
    "vqgan": (
        "configs/vqgan/vq16.yaml",
        ("quantizer.entropy_weight=0.1", "image_size=64", "encoder.channels=32", "pixel_decoder.channels=32"),
        64,
    ),
}  # fmt: skip
TINY_RAR = {"dim": 32, "n_layer": 2, "n_head": 2, "ffn_hidden": 64, "vocab_size": 24, "num_tokens": 9}
TINY_DIT = {"in_channels": 4, "size": 4, "width": 32, "depth": 2, "heads": 2, "num_classes": 4}
GENERATOR_CASES = {
    "gpt": tiny_gpt(),
    "gpt, holistic tokens": tiny_gpt(num_holistic=6),
    "gpt, permuted": tiny_gpt(permuted=True),
    "rar": vfmtok.rar_config("RAR-B", num_classes=4, **TINY_RAR),
    "diffusion": vfmtok.dit_config("LightningDiT-B/1", qk_norm=True, **TINY_DIT),
    "diffusion, wide head": vfmtok.dit_config("DiTDH-S", head_width=48, head_depth=1, head_heads=2, **TINY_DIT),
    "diffusion, as SiT": vfmtok.dit_config("LightningDiT-B/1", norm="layer", mlp="gelu", rope=False, **TINY_DIT),
}


@pytest.fixture(params=[False, True], ids=["float32", "bf16"])
def bf16(request):
    return request.param


def build_without_storage(case: str, root):
    file, overrides, size = TOKENIZER_CASES[case]
    with torch.device("meta"):
        return vfmtok.build_tokenizer(vfmtok.load_config(root / file, overrides)), size


def images(size: int, count: int = 2) -> torch.Tensor:
    return torch.empty(count, 3, size, size, device="cuda")


def tensors(output) -> list[torch.Tensor]:
    found = vars(output) if dataclasses.is_dataclass(output) else output
    return [leaf for leaf in tree_leaves(found) if torch.is_tensor(leaf)]


def assert_on_cuda(*outputs) -> None:
    found = [tensor for output in outputs for tensor in tensors(output)]
    assert found and {tensor.device.type for tensor in found} == {"cuda"}


def test_every_family_is_here():
    def kinds(names):
        return {name.partition(",")[0] for name in names}

    assert kinds(TOKENIZER_CASES) == TOKENIZERS.keys()
    assert kinds(GENERATOR_CASES) == GENERATORS.keys()


# ---- the instrument ------------------------------------------------------------------------


class WithTable(torch.nn.Linear):
    """A table that does not move with the module."""

    def __init__(self):
        super().__init__(4, 4)
        self.table = torch.ones(4)

    def forward(self, x):
        return super().forward(x) + self.table


def test_tensors_left_on_the_host_are_found():
    module = WithTable()
    with FakeCuda() as cuda:
        cuda.put(module)
        with pytest.raises(Exception, match="convert all Tensors to FakeTensors"):
            module(torch.empty(2, 4, device="cuda"))
        module.table = torch.ones(4)
        with pytest.raises(RuntimeError, match=r"same device|two different devices"):
            module(torch.empty(2, 4, device="cuda"))


@pytest.mark.parametrize(
    "stall",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x.cpu(),
        lambda x: x[0].tolist(),
        lambda x: x + torch.tensor([1.0, 2.0], device="cuda"),
        lambda x: torch.where(x > 0, x, torch.tensor(0.0)),
        lambda x: x.index_select(0, torch.tensor([0, 1]).to("cuda")),
        lambda x: torch.as_tensor(3.0).to("cuda") * x,
    ],
)
def test_waits_are_found(stall):
    with FakeCuda() as cuda:
        x = torch.empty(2, 2, device="cuda")
        assert not cuda.waits
        stall(x)
        assert cuda.waits


def test_what_does_not_wait_is_not_taken_for_it():
    with FakeCuda() as cuda:
        x = torch.empty(2, 2, device="cuda")
        y = torch.where(x > 0, x, 0.0).masked_fill(x < 1, 2.0) + torch.arange(2, device="cuda") * 3
        y[0] = 1
        assert torch.full((2,), 5, device="cuda").device.type == "cuda" == y.device.type
        assert (y.float() * torch.tensor(2.0)).device.type == "cuda"  # a CPU scalar is an argument of the kernel
        assert not cuda.waits


def test_autocast_is_on():
    with FakeCuda(bf16=True):
        x = torch.empty(2, 2, device="cuda")
        assert (x @ x).dtype == torch.bfloat16 and x.softmax(-1).dtype == torch.float32
        with torch.autocast("cuda", enabled=False):
            assert (x @ x).dtype == torch.float32
    with FakeCuda():
        x = torch.empty(2, 2, device="cuda")
        assert (x @ x).dtype == torch.float32
    assert not torch.is_autocast_enabled("cuda")


# ---- tokenizers ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", TOKENIZER_CASES)
def test_tokenizer(case, bf16, root):
    """A training pass, encode, decode and pixels."""
    tokenizer, size = build_without_storage(case, root)
    with FakeCuda(bf16) as cuda:
        cuda.put(tokenizer)
        out = tokenizer.train()(images(size))
        assert out.reconstruction.shape == (2, 3, size, size)
        if getattr(tokenizer, "takes_transformations", False):
            draws = Draws(3, torch.empty(2, dtype=torch.int64, device="cuda"))
            given = (Transformation(latent_scale=0.5, quarter_turns=1), draws if tokenizer.encode_draws else None)
            turned = tokenizer(images(size), *given)
            assert turned.reconstruction.shape == (2, 3, size // 2, size // 2)
            assert_on_cuda(turned)
        assert all(loss.dtype == torch.float32 and loss.ndim == 0 for loss in out.losses.values())
        tokenizer.eval()
        with torch.no_grad():
            encoding = tokenizer.encode(images(size + 1 if case.startswith(("vfmtok", "vfmae")) else size))
            code = code_of(encoding, tokenizer.code)
            assert code.dtype == (torch.float32 if isinstance(tokenizer.code, Latents) else torch.int64)
            assert code.shape == (2, *tokenizer.code.shape)
            decoded, pixels = tokenizer.decode(code), tokenizer.decode_to_uint8(code, size // 2)
        assert pixels.shape == (2, size // 2, size // 2, 3) and pixels.dtype == torch.uint8
        assert_on_cuda(out, encoding, decoded, pixels)
    assert cuda.waits == []


# ---- generators ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", GENERATOR_CASES)
def test_generator_s_loss(case, bf16):
    generator = build_generator(GENERATOR_CASES[case])
    with FakeCuda(bf16) as cuda:
        cuda.put(generator).train()
        labels, samples = (torch.empty(2, dtype=torch.int64, device="cuda") for _ in range(2))
        continuous = isinstance(generator.code, Latents)
        code = torch.empty(2, *generator.code.shape, dtype=torch.float32 if continuous else torch.int64, device="cuda")
        for draws in (None, Draws(3, samples)):
            terms = generator.loss(code, labels, draws)
            assert all(term.dtype == torch.float32 and term.ndim == 0 for term in terms.values())
            assert_on_cuda(terms)
    assert cuda.waits == []


def test_gpt_logits_and_loss(bf16):
    gpt = vfmtok.GPT(tiny_gpt(qk_norm=True, drop_path_rate=0.1))
    gpt.checkpoint_activations = True
    with FakeCuda(bf16) as cuda:
        cuda.put(gpt).train()
        ids = torch.empty(2, gpt.config.num_tokens, dtype=torch.int64, device="cuda")
        out = gpt(ids[:, 0], ids[:, :-1], targets=ids)
        assert out.logits.dtype == out.loss.dtype == torch.float32
        assert_on_cuda(out)
    assert cuda.waits == []


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_gpt_decode_step(bf16, weights, cache):
    gpt = vfmtok.GPT(tiny_gpt()).to(weights).eval()
    with FakeCuda(bf16) as cuda, torch.no_grad():
        cuda.put(gpt)
        labels = torch.empty(2, dtype=torch.int64, device="cuda")
        prefix = torch.empty(2, 3, dtype=torch.int64, device="cuda")
        state, logits = gpt.begin(labels, prefix, cache=CACHES[cache])
        assert_on_cuda(logits)
        state.reserve(5)
        logits = gpt.decode_step(labels, torch.full((1,), 4, device="cuda"), state)
        assert logits.shape == (2, gpt.config.vocab_size) and logits.dtype == torch.float32
        assert_on_cuda(logits, state.layers[0].keys)
    assert cuda.waits == []


@pytest.mark.parametrize(
    "settings",
    [
        {"cfg_scale": 1.0},
        {"cfg_scale": 2.0, "cfg_schedule": "cosine", "cfg_interval": 3},
        {"temperature": 0.9, "top_k": 5, "top_p": 0.9},
        {"greedy": True, "kv_cache": "growing"},
    ],
    ids=lambda settings: ", ".join(settings),
)
@pytest.mark.parametrize("host", [True, False], ids=["labels on the host", "labels on the GPU"])
@pytest.mark.parametrize("family", ["gpt", "holistic", "rar"])
def test_sampling_waits_at_its_ends_alone(family, settings, host, bf16):
    """The labels' range before the first token where they are on the GPU, whether all logits were finite after the
    last; where labels come from the host, they travel there. However many tokens there are."""
    counts = []
    for tokens in (4, 16):
        sizes = {**TINY_RAR, "num_tokens": tokens}
        configs = {
            "gpt": tiny_gpt(num_tokens=tokens),
            "holistic": tiny_gpt(num_tokens=tokens, num_holistic=2),
            "rar": vfmtok.rar_config("RAR-B", num_classes=4, **sizes),
        }
        model = build_generator(configs[family])
        with FakeCuda(bf16) as cuda:
            cuda.put(model)
            labels = torch.zeros(3, dtype=torch.int64, device="cpu" if host else "cuda")
            ids = vfmtok.generate(model, labels, **settings)
            assert ids.shape == (3, model.code.num_tokens)
            assert_on_cuda(ids)
        assert all(wait.startswith("generators/autoregressive.py") for wait in cuda.waits), cuda.waits
        counts.append(len(cuda.waits))
    assert counts[0] == counts[1] <= 3  # of a range two numbers are read, one by one here and at once on a GPU


@pytest.mark.parametrize("host", [True, False], ids=["labels on the host", "labels on the GPU"])
@pytest.mark.parametrize("method", ["euler", "heun", "sde"])
def test_sampling_of_latents_waits_at_its_ends_alone(method, host, bf16):
    counts = []
    for steps in (3, 8):
        model = build_generator(vfmtok.dit_config("LightningDiT-B/1", **TINY_DIT))
        with FakeCuda(bf16) as cuda:
            cuda.put(model)
            labels = torch.zeros(3, dtype=torch.int64, device="cpu" if host else "cuda")
            latents = vfmtok.generate(model, labels, method=method, steps=steps, cfg_scale=2.0, cfg_high=0.8)
            assert latents.shape == (3, *model.code.shape) and latents.dtype == torch.float32
            assert_on_cuda(latents)
        assert all(wait.startswith("generators/diffusion/sampling.py") for wait in cuda.waits), cuda.waits
        counts.append(len(cuda.waits))
    assert counts[0] == counts[1] <= 3


def test_random_numbers_by_counter():
    with FakeCuda() as cuda:
        samples = torch.empty(3, dtype=torch.int64, device="cuda")
        draws = Draws(2**63 + 5, samples)
        found = draws.uniform("a", 7), draws.normal("b", 5), exponentials(1, samples, samples[:1], 10)
        assert [tuple(numbers.shape) for numbers in found] == [(3, 7), (3, 5), (3, 10)]
        assert_on_cuda(found)
    assert cuda.waits == []
