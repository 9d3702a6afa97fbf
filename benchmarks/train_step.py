"""One training step of the tokenizer, split into its parts, beside a naive step.

    python benchmarks/train_step.py                              # full size, batch 1: 20 minutes on 2 cores
    python benchmarks/train_step.py --precision bf16 --repeat 3

The bound of the step is its FLOP count (PyTorch's counter, encoder and loss networks included) over the rate of a
large matrix product in the same run. The naive step computes the same with the same model: the discriminator is
always on and collects gradients in the tokenizer's step too, sampling is ``grid_sample`` per level, each branch goes
through the ViT decoder by itself with the memory, convolutions keep PyTorch's default memory format, the optimizer and
the average of weights go tensor by tensor. Steps of all kinds alternate.

LPIPS and the DINO discriminator have random weights: no timing depends on their values. Memory is the peak of a
process that makes two steps of one kind.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision
from machine import DTYPES, bound, print_header, print_machine, print_row, product_rate, resident_bytes
from tokenizer import grid_sample_loop
from torch.utils.flop_counter import FlopCounterMode

import vfmtok
from vfmtok.decoders.vqgan import PixelDecoder, ResBlock
from vfmtok.discriminators.build import build_discriminator
from vfmtok.layers import deformable_attention
from vfmtok.layers.region_sampler import SamplerLayer
from vfmtok.losses import perceptual
from vfmtok.tokenizers.vfmtok.vit_decoder import DecoderLayer, ViTDecoder
from vfmtok.training.adversaries import Adversary, DiscriminatorPass
from vfmtok.training.ema import EMA
from vfmtok.training.objective import TokenizerObjective
from vfmtok.training.optimizer import Stepper, build_optimizer
from vfmtok.training.recipe import AdversarialConfig, LossConfig, OptimizerConfig
from vfmtok.training.tokenizer_passes import checkpoint_activations
from vfmtok.weights.name_maps import own_tensors

PARTS = ("encoder", "sampler and decoders", "losses", "backward", "discriminator", "optimizer and EMA")
KINDS = {"naive": "naive", "before": "ours before --disc-start", "after": "ours after it"}


class Bench:
    """The tokenizer, its losses and its discriminator, ready to step."""

    def __init__(self, arguments, precision: str):
        torch.manual_seed(0)
        config = vfmtok.load_config(arguments.config, arguments.set)
        self.tokenizer = vfmtok.VFMTok(config).train()
        with tempfile.TemporaryDirectory() as folder:
            torch.save(torchvision.models.vgg16(weights=None).state_dict(), f"{folder}/vgg.pth")
            lpips = perceptual.LPIPS("vgg", f"{folder}/vgg.pth")
        adversarial = AdversarialConfig()
        self.adversary = Adversary("", adversarial, build_discriminator("dinogan", config.image_size, "none"))
        self.discriminators = DiscriminatorPass(self.adversary)
        discriminator = self.adversary.discriminator
        self.objective = TokenizerObjective(LossConfig(), adversarial, self.tokenizer, lpips, discriminator)
        self.ema = EMA(own_tensors(self.tokenizer), 0.9999)
        self.images = torch.rand(arguments.batch, 3, config.image_size, config.image_size) * 2 - 1
        self.precision = precision
        self.steppers = [self.stepper(self.tokenizer), self.stepper(self.discriminators)]
        self.plain = [self.plain_optimizer(self.tokenizer), self.plain_optimizer(self.discriminators)]
        self.encoder_seconds = 0.0
        forward = self.tokenizer.encoder.forward
        self.tokenizer.encoder.forward = lambda images: self.clocked(forward, images)

    def stepper(self, module) -> Stepper:
        learned = [p for p in module.parameters() if p.requires_grad]
        return Stepper(build_optimizer(OptimizerConfig(), learned), learned, 1.0)

    def plain_optimizer(self, module) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4, foreach=False)

    def clocked(self, forward, images):
        begin = time.perf_counter()
        features = forward(images)
        self.encoder_seconds += time.perf_counter() - begin
        return features

    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")

    # ---- the two steps ---------------------------------------------------------------------

    def ours(self, adversarial: bool) -> tuple[dict[str, float], float]:
        """Seconds of every part, and the loss."""
        clock = Clock()
        with self.autocast():
            out = self.tokenizer(self.images)
            clock.split("sampler and decoders", without=self.encoder_time())
            terms = self.objective(self.images, out, adversarial)
            loss = sum(terms.values())
            clock.split("losses")
        self.steppers[0].backward(loss)
        clock.split("backward")
        if adversarial:
            with self.autocast():
                real, fake = self.discriminators(self.images, out.reconstruction.detach())
                judged = sum(self.adversary.terms(real, fake).values())
            self.steppers[1].backward(judged)
            clock.split("discriminator")
            self.steppers[1].step(1e-4)
        self.steppers[0].step(1e-4)
        self.ema.update(1)
        clock.split("optimizer and EMA")
        return clock.seconds | {"encoder": clock.excluded}, float(loss)

    def naive(self) -> tuple[dict[str, float], float]:
        clock = Clock()
        with naive_parts(), self.autocast():
            out = self.tokenizer(self.images)
            clock.split("sampler and decoders", without=self.encoder_time())
            terms = self.objective(self.images, out, with_discriminator=False)
            judged = self.adversary.discriminator(out.reconstruction)  # with gradients for the discriminator too
            loss = sum(terms.values()) + 0.5 * torch.nn.functional.softplus(-judged.float()).mean()
            clock.split("losses")
        loss.backward()
        clock.split("backward")
        self.plain[1].zero_grad()
        with self.autocast():
            real, fake = self.discriminators(self.images, out.reconstruction.detach())
            disc = sum(self.adversary.terms(real, fake).values())
        disc.backward()
        clock.split("discriminator")
        for optimizer in self.plain:
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0, foreach=False)
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for name, tensor in self.ema.live.items():
                self.ema.average[name].mul_(0.9999).add_(tensor, alpha=1e-4)
        clock.split("optimizer and EMA")
        return clock.seconds | {"encoder": clock.excluded}, float(loss)

    def encoder_time(self) -> float:
        taken, self.encoder_seconds = self.encoder_seconds, 0.0
        return taken

    def run(self, kind: str) -> tuple[dict[str, float], float]:
        return self.naive() if kind == "naive" else self.ours(kind == "after")


class Clock:
    """Seconds between splits."""

    def __init__(self):
        self.seconds, self.excluded, self._last = {}, 0.0, time.perf_counter()

    def split(self, part: str, without: float = 0.0) -> None:
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last - without
        self.excluded += without
        self._last = now


@contextmanager
def naive_parts():
    """Sampling by grid_sample, the ViT decoder once per branch, convolutions in the default memory format."""
    honest_run, honest_sampling = ViTDecoder._run, deformable_attention.deformable_sampling
    honest_pixels, honest_format = PixelDecoder.forward, perceptual.convolution_format

    def branch_by_branch(self, layers, memory, branches):
        return [honest_run(self, layers, memory, [branch])[0] for branch in branches]

    def channels_first(self, z):
        x = self.middle(self.conv_in(z))
        for level in self.levels:
            x = level(x)
        return self.conv_out(torch.nn.functional.silu(self.norm_out(x)))

    ViTDecoder._run, deformable_attention.deformable_sampling = branch_by_branch, grid_sample_loop
    PixelDecoder.forward, perceptual.convolution_format = channels_first, lambda images: images
    try:
        yield
    finally:
        ViTDecoder._run, deformable_attention.deformable_sampling = honest_run, honest_sampling
        PixelDecoder.forward, perceptual.convolution_format = honest_pixels, honest_format


# --------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------


def main() -> None:
    arguments = parse_arguments()
    warnings.filterwarnings("ignore")
    if arguments.memory_of:
        print(peak_bytes(arguments))
        return
    print_machine(torch.device("cpu"))
    print(f"batch {arguments.batch}")
    for precision in arguments.precision:
        measure(arguments, precision)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=Path(__file__).parent.parent / "configs/vit_transformer.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--repeat", type=int, default=3, help="steps of every kind, after one that does not count")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(arguments, precision: str) -> None:
    bench, device, dtype = Bench(arguments, precision), torch.device("cpu"), DTYPES[precision]
    rate = product_rate(device, dtype)
    flops = {}
    for kind in KINDS:  # the step that does not count, for time
        with FlopCounterMode(display=False) as counter:
            _, loss = bench.run(kind)
        flops[kind] = counter.get_total_flops()
        if kind == "naive":
            print(f"\n{precision}: products run at {rate / 1e9:.0f} GFLOP/s; loss of the first step {loss:.4f}")
    times = {kind: [] for kind in KINDS}
    for _ in range(arguments.repeat):
        for kind in KINDS:
            times[kind].append(bench.run(kind)[0])
    print(f"{'seconds (median)':28}" + "".join(f"{name:>28}" for name in KINDS.values()))
    for part in PARTS:
        row = [median([run.get(part, 0.0) for run in times[kind]]) for kind in KINDS]
        print(f"{part:28}" + "".join(f"{seconds:28.3f}" for seconds in row))
    totals = {kind: median([sum(run.values()) for run in times[kind]]) for kind in KINDS}
    print_header("GFLOP", "times as fast as naive")
    for kind, name in KINDS.items():
        more = f"{flops[kind] / 1e9:.0f}", f"{totals['naive'] / totals[kind]:.2f}"
        print_row(f"step, {precision}: {name}", totals[kind], bound(device, dtype, flops[kind]), *more)
    if not arguments.no_memory:
        print_memory(arguments, precision)


def print_memory(arguments, precision: str) -> None:
    """Every kind in a process of its own."""
    peaks = {}
    for kind in ("start", "naive", "after", "after, recomputed"):
        command = [sys.executable, __file__, "--memory-of", kind, "--precision", precision, "--batch"]
        command += [str(arguments.batch), "--config", str(arguments.config)]
        command += [word for change in arguments.set for word in ("--set", change)]
        peaks[kind] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    print("peak memory of the process, GiB: " + ", ".join(f"{kind} {peak / 2**30:.2f}" for kind, peak in peaks.items()))
    shares = ", ".join(f"{kind} {peaks[kind] / peaks['naive']:.2f}" for kind in ("after", "after, recomputed"))
    print(
        f"of the naive step's: {shares} ('start' is all weights, before a step; recomputed: run.checkpoint_activations)"
    )


def peak_bytes(arguments) -> int:
    bench = Bench(arguments, arguments.precision[0])
    if arguments.memory_of == "after, recomputed":
        checkpoint_activations(bench.tokenizer, (SamplerLayer, DecoderLayer, ResBlock))
    if arguments.memory_of != "start":
        for _ in range(2):
            bench.run(arguments.memory_of.split(",")[0])
    # Not ru_maxrss: a new process inherits that from the one that started it.
    return int(resident_bytes("VmHWM"))


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
