"""Time and memory of the evaluation's hot paths, each against its bound: the machine's matrix product.

    python benchmarks/evaluate.py                       # on the GPU, if there is one
    python benchmarks/evaluate.py --device cpu --only pairs

- statistics + FID: mean and covariance of two sets of N x 2048 features (2*N*2048^2 FLOP each), and the distance,
  whose decompositions have no such bound: their time is shown apart.
- precision/recall and KID: products of all pairs, in float64.
- Inception: images a second, with weights drawn at random; FLOP counted by PyTorch.
"""

import argparse
import io
import time

import torch
from machine import (
    bound,
    peak_memory,
    print_header,
    print_machine,
    print_row,
    product_rate,
    seconds,
    synchronise,
    timed,
)
from torch.utils.flop_counter import FlopCounterMode
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from vfmtok.evaluation.inception import Inception
from vfmtok.metrics.frechet import FeatureStatistics, frechet_distance
from vfmtok.metrics.kernel_distance import kernel_distance
from vfmtok.metrics.precision_recall import precision_recall

DIM = 2048


def main() -> None:
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print_machine(device)
    double = product_rate(device, torch.float64)
    print(f"{device}, float64 matrix product {double / 1e9:.0f} GFLOP/s")
    print_header("more")
    if arguments.only in (None, "fid"):
        measure_fid(arguments.fid_samples, device)
    if arguments.only in (None, "pairs"):
        measure_pairs(arguments.pair_samples, device)
    if arguments.only in (None, "inception"):
        measure_inception(arguments.batch, device)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of the CPU (default: PyTorch's)")
    parser.add_argument("--fid-samples", type=int, default=10_000)
    parser.add_argument("--pair-samples", type=int, default=5_000)
    parser.add_argument("--batch", type=int, default=16, help="images at a time through Inception")
    parser.add_argument("--only", choices=["fid", "pairs", "inception"])
    return parser.parse_args()


def measure_fid(count: int, device: torch.device) -> None:
    sets = [like_pool(count, seed).to(device) for seed in range(2)]
    start = time.perf_counter()
    gaussians = []
    for features in sets:
        statistics = FeatureStatistics(DIM)
        for block in features.split(64):
            statistics.update(block)
        gaussians.append(statistics.compute())
    synchronise(device)
    collected = time.perf_counter()
    distance = frechet_distance(*gaussians)
    end = time.perf_counter()
    least = bound(device, torch.float64, 2 * 2 * count * DIM**2)
    print_row(f"statistics of 2 x {count}", collected - start, least, "")
    print_row("distance (decompositions, checked)", end - collected, None, f"FD {distance:.4f}")
    print_row("together", end - start, None, "")


def measure_pairs(count: int, device: torch.device) -> None:
    samples, reference = (like_pool(count, seed).to(device) for seed in range(2))
    elapsed = timed(lambda: precision_recall(samples, reference), device)
    memory = peak_memory(lambda: precision_recall(samples, reference), device)
    least = bound(device, torch.float64, 3 * 2 * count**2 * DIM)  # both sets with themselves, and with each other
    print_row(f"precision/recall {count} vs {count}", elapsed, least, f"{memory / 2**20:.0f} MiB besides")
    size, subsets = min(1000, count), 100
    elapsed = timed(lambda: kernel_distance(samples, reference, subsets, size), device)
    least = bound(device, torch.float64, subsets * 3 * 2 * size**2 * DIM)
    print_row(f"KID, {subsets} subsets of {size}", elapsed, least, "")


def measure_inception(batch: int, device: torch.device) -> None:
    network = Inception(random_weights()).to(device)
    images = torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter:
        network(images)
    elapsed = seconds(lambda: network(images), device, 3)
    least = bound(device, torch.float32, counter.get_total_flops())
    print_row(f"Inception, batch {batch}, float32", elapsed, least, f"{batch / elapsed:.1f} images/s")


def like_pool(count: int, seed: int) -> torch.Tensor:
    """(count, 2048) non-negative and correlated, as pool3 features are."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(99)) * torch.logspace(0, -3, DIM)[:, None]
    return (torch.randn(count, DIM, generator=draw) @ mix / 8 + 0.3).relu()


def random_weights() -> dict[str, torch.Tensor]:
    class Initialised(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_):
            pass

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    return Initialised("inception", ["2048"], feature_extractor_weights_path=empty).state_dict()


if __name__ == "__main__":
    main()
