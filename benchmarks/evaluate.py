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
from tokenizer import matrix_rate, peak_memory, seconds, synchronise
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
    double = float64_rate(device)
    print(f"{device}, {torch.get_num_threads()} threads, float64 matrix product {double / 1e9:.0f} GFLOP/s")
    if arguments.only in (None, "fid"):
        measure_fid(arguments.fid_samples, device, double)
    if arguments.only in (None, "pairs"):
        measure_pairs(arguments.pair_samples, device, double)
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


def measure_fid(count: int, device: torch.device, rate: float) -> None:
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
    report(f"statistics of 2 x {count}", collected - start, 2 * 2 * count * DIM**2, rate)
    print(f"{'distance (decompositions, checked)':36}{end - collected:8.2f} s    FD {distance:.4f}")
    print(f"{'together':36}{end - start:8.2f} s")


def measure_pairs(count: int, device: torch.device, rate: float) -> None:
    samples, reference = (like_pool(count, seed).to(device) for seed in range(2))
    elapsed, _ = timed(lambda: precision_recall(samples, reference), device)
    # both sets with themselves, and with each other
    report(f"precision/recall {count} vs {count}", elapsed, 3 * 2 * count**2 * DIM, rate)
    memory = peak_memory(lambda: precision_recall(samples, reference), device)
    print(f"{'  extra memory':36}{memory / 2**20:8.0f} MiB")
    size, subsets = min(1000, count), 100
    elapsed, _ = timed(lambda: kernel_distance(samples, reference, subsets, size), device)
    report(f"KID, {subsets} subsets of {size}", elapsed, subsets * 3 * 2 * size**2 * DIM, rate)


def measure_inception(batch: int, device: torch.device) -> None:
    rate = matrix_rate(device, "fp32")
    network = Inception(random_weights()).to(device)
    images = torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter:
        network(images)
    elapsed = seconds(lambda: network(images), device, 3)
    report(f"Inception, batch {batch}", elapsed, counter.get_total_flops(), rate)
    print(f"{'  images a second':36}{batch / elapsed:8.1f}      (float32 product {rate / 1e9:.0f} GFLOP/s)")


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


def timed(function, device: torch.device) -> tuple[float, object]:
    start = time.perf_counter()
    result = function()
    synchronise(device)
    return time.perf_counter() - start, result


def float64_rate(device: torch.device) -> float:
    size = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=device, dtype=torch.float64)
    return 2 * size**3 / min(timed(lambda: a @ b, device)[0] for _ in range(9))


def report(name: str, elapsed: float, flops: float, rate: float) -> None:
    print(
        f"{name:36}{elapsed:8.2f} s {flops / elapsed / 1e9:8.0f} GFLOP/s {flops / elapsed / rate:6.0%} of the product"
    )


if __name__ == "__main__":
    main()
