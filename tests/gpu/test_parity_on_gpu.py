"""Golden data on the GPU: float32 within the tolerances of the CPU tests, bfloat16 close to float32."""

import golden_rule
import pytest
import torch
import torch.nn.functional as F
from tiny_gpt import published_tiny_gpt, random_gpt, random_inputs

import vfmtok
from vfmtok.discriminators.build import build_discriminator
from vfmtok.generators.counter_random import Draws, exponentials
from vfmtok.generators.kv_cache import CACHES
from vfmtok.layers.deformable_attention import deformable_sampling
from vfmtok.quantizers.cosine import CosineConfig, CosineQuantizer

pytestmark = pytest.mark.gpu


def relative(value, reference) -> float:
    reference = torch.as_tensor(reference)
    return ((value.detach().cpu() - reference).abs().max() / reference.abs().max()).item()


@pytest.fixture(scope="module")
def full_size(device, root):
    """VFMTok at its published size, on the weights of the golden data."""
    config = vfmtok.load_config(root / "configs/vit_transformer.yaml", ["decoder.attention_dropout=0"])
    tokenizer = vfmtok.VFMTok(config)
    tokenizer.encoder.load_official(golden_rule.dinov2_weights())
    return vfmtok.load_released(tokenizer, golden_rule.tokenizer_weights()).eval().to(device)


def test_full_size_tokenizer(full_size, device):
    golden = golden_rule.load("tokenizer_full.npz")
    with torch.no_grad():
        encoding = full_size.encode(golden_rule.image_for("tokenizer_full", 2, 336).to(device))
        decoded = full_size.decode_ids(torch.as_tensor(golden["codes"]).long().to(device))
    assert relative(encoding.latents, golden["prequant"]) < 1e-4
    assert (encoding.ids.cpu() == torch.as_tensor(golden["codes"])).float().mean() >= 0.995
    assert relative(F.avg_pool2d(decoded, 12), golden["recon_pooled"]) < 1e-4


def test_full_size_tokenizer_in_bfloat16(full_size, device):
    """Most ids stay: those that change lay between two codes."""
    golden = golden_rule.load("tokenizer_full.npz")
    images = golden_rule.image_for("tokenizer_full", 2, 336).to(device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        encoding = full_size.encode(images)
        decoded = full_size.decode_ids(torch.as_tensor(golden["codes"]).long().to(device))
    assert encoding.latents.dtype == torch.float32 and encoding.codes.dtype == torch.float32
    assert (encoding.ids.cpu() == torch.as_tensor(golden["codes"])).float().mean() > 0.7
    assert relative(F.avg_pool2d(decoded.float(), 12), golden["recon_pooled"]) < 0.05


@pytest.mark.parametrize("case", ["vq16", "vq8"])
def test_vqgan(case, device, root):
    golden, size = golden_rule.load(f"llamagen/{case}.npz"), {"vq16": 128, "vq8": 64}[case]
    tokenizer = vfmtok.build_tokenizer(vfmtok.load_config(root / f"configs/vqgan/{case}.yaml"))
    weights = golden_rule.weights(f"llamagen/{case}_keys.json", f"{case}.")
    vfmtok.load_released(tokenizer, weights).eval().to(device)
    with torch.no_grad():
        ids = tokenizer.encode(golden_rule.image_for(case, 2, size).to(device)).ids
        decoded = tokenizer.decode_ids(torch.as_tensor(golden["ids"]).long().to(device))
    assert (ids.cpu() == torch.as_tensor(golden["ids"])).float().mean() >= 0.995
    assert relative(decoded[:, :, ::31], golden["recon_rows"]) < 1e-4


def test_vfmae(device, root):
    """At its published size; under bfloat16 autocast the latents are still float32, and near."""
    golden = golden_rule.load("vfmae/vfmae_full.npz")
    tokenizer = vfmtok.build_tokenizer(vfmtok.load_config(root / "configs/vfmae/vfmae.yaml"))
    tokenizer.encoder.load_official(golden_rule.dinov2_weights())
    weights = golden_rule.weights("vfmae/vfmae_keys.json", "vfmae.")
    vfmtok.load_released(tokenizer, weights).eval().to(device)
    images = golden_rule.image_for("vfmae_full", 2, 256).to(device)
    with torch.no_grad():
        latents = tokenizer.encode(images).latents
        decoded = tokenizer.decode(torch.as_tensor(golden["latents"]).to(device))
        with torch.autocast(device.type, torch.bfloat16):
            rounded = tokenizer.encode(images).latents
    assert relative(latents, golden["latents"]) < 1e-4
    assert relative(F.avg_pool2d(decoded, 16), golden["recon_pooled"]) < 1e-4
    assert rounded.dtype == torch.float32 and relative(rounded, golden["latents"]) < 0.05


def test_gpt(device):
    golden, gpt = golden_rule.load("gpt_tiny.npz"), published_tiny_gpt().to(device)
    ids, labels = (torch.as_tensor(golden[name]).long().to(device) for name in ("idx", "cls"))
    out = gpt(labels, ids[:, :-1], targets=ids)
    assert relative(out.logits, golden["logits"]) < 1e-4
    assert out.loss.item() == pytest.approx(float(golden["loss"]), rel=1e-4)
    greedy = vfmtok.generate(gpt, labels, cfg_scale=2.5, greedy=True)
    assert torch.equal(greedy.cpu(), torch.as_tensor(golden["greedy_cfg2.5"]).long())


def test_rar(device):
    golden, weights = golden_rule.load("rar/rar_tiny.npz"), golden_rule.weights("rar/rar_tiny_keys.json", "rar_tiny.")
    weights["lm_head.weight"] *= 4
    sizes = {"dim": 64, "n_layer": 3, "n_head": 4, "ffn_hidden": 192, "vocab_size": 96, "num_tokens": 16}
    rar = vfmtok.load_released(vfmtok.RAR(vfmtok.rar_config("RAR-B", num_classes=10, **sizes)), weights)
    rar = rar.eval().to(device)
    labels, ids, order = (torch.as_tensor(golden[name]).long().to(device) for name in ("cls", "idx", "perm_a"))
    assert relative(rar(labels, ids, order).logits, golden["logits_perm_a"]) < 1e-4


def test_quantizer(device):
    golden = golden_rule.load("quantizer_large.npz")
    quantizer = CosineQuantizer(CosineConfig()).eval()
    with torch.no_grad():
        quantizer.codebook.copy_(golden_rule.tensor_for("slot_quantize.embedding.weight", (16384, 12)))
        quantizer.codebook.copy_(F.normalize(quantizer.codebook, dim=-1))
    z = torch.as_tensor(golden["z"]).flatten(2).transpose(1, 2)  # (2,256,12)
    ids = quantizer.to(device)(z.to(device)).ids
    assert torch.equal(ids.cpu().flatten(), torch.as_tensor(golden["indices"]).long().flatten())


@pytest.mark.parametrize("case", ["a", "b"])
def test_deformable_sampling(case, device):
    golden = {name: torch.as_tensor(array) for name, array in golden_rule.load(f"deform_attn_{case}.npz").items()}
    grids = [tuple(grid) for grid in golden["shapes"].tolist()]
    inputs = [golden[name].to(device).requires_grad_() for name in ("value", "locations", "weights")]
    out = deformable_sampling(inputs[0], grids, *inputs[1:])
    assert relative(out, golden["output"]) < 1e-4
    out.backward(golden["grad_output"].to(device))
    assert relative(inputs[1].grad, golden["grad_locations"]) < 1e-4
    assert relative(inputs[2].grad, golden["grad_weights"]) < 1e-4


@pytest.mark.parametrize("kind", ["patchgan", "stylegan"])
def test_discriminators_are_those_of_the_cpu(kind, device):
    torch.manual_seed(0)
    discriminator = build_discriminator(kind, 64).eval()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = discriminator(images)
        found = discriminator.to(device)(images.to(device))
    assert relative(found, expected) < 1e-3


def test_random_numbers_are_those_of_the_cpu(device):
    samples, step = torch.tensor([0, 5, 2**40]), torch.tensor([3])
    found = exponentials(7, samples.to(device), step.to(device), 100)
    torch.testing.assert_close(found.cpu(), exponentials(7, samples, step, 100), rtol=1e-6, atol=1e-9)
    draws = Draws(7, samples.to(device)).uniform("order", 100)
    assert torch.equal(draws.cpu(), Draws(7, samples).uniform("order", 100))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cached_decoding_is_the_whole_pass(dtype, cache, device):
    gpt = random_gpt().to(device, dtype)
    labels, ids = (tensor.to(device) for tensor in random_inputs(gpt, 3))
    with torch.no_grad():
        whole = gpt(labels, ids[:, :-1]).logits
        state, logits = gpt.begin(labels, ids[:, :4], cache=CACHES[cache])
        found = [logits]
        for token in range(4, 15):
            state.reserve(2 + token)
            found.append(gpt.decode_step(ids[:, token], torch.tensor([token + 1], device=device), state))
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert relative(torch.stack(found, 1), whole[:, 4:].cpu()) < tolerance


def test_flash_attention_is_the_same(cuda):
    pytest.importorskip("flash_attn")
    from vfmtok.generators.causal_attention import causal_attention

    q, k, v = torch.randn(3, 2, 64, 4, 32, device=cuda, dtype=torch.bfloat16)
    torch.testing.assert_close(causal_attention(q, k, v, "flash-attn"), causal_attention(q, k, v), rtol=0.02, atol=0.02)
