"""What a GPU makes of this package: correctness first, then speed beside the GPU's stated peaks. One report of both.

    scripts/gpu_check.sh                     # everything; about 20 minutes on an H100
    scripts/gpu_check.sh --only speed --out results/speed

1. The tests marked ``gpu``: parity with the golden data on CUDA, bfloat16, both trainings for 200 steps and resumed,
   sampling, CUDA graphs, compilation, flash-attn where it is installed, FSDP2, NCCL where there are several GPUs.
2. Training steps and sampling of the tokenizer and of GPTs: images or tokens a second, and MFU, the FLOPs of a step
   (counted by PyTorch, recomputation left out) over its time and the stated peak of the card. Sampling by the growing
   cache of keys and values, and by the fixed one, whose steps are replayed as CUDA graphs.
3. ``benchmarks/tokenizer.py`` and ``benchmarks/sampling.py``, part by part.

Without a GPU it runs to the end with tiny models on the CPU, so that the script itself is known to work, and says what
it skipped. Writes report.json and report.md; exit code 1 if something failed.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import DTYPES, machine_line, product_rate, timed
from torch.utils.flop_counter import FlopCounterMode

import vfmtok
from vfmtok.files import write_json
from vfmtok.generators.cuda_graphs import recorder_of
from vfmtok.generators.kv_cache import CACHES

ROOT = Path(__file__).parents[1]
TEST_MINUTES, BENCHMARK_MINUTES = 12, 3  # limits of a stage: 20 minutes in all

# Dense peaks of each card's data sheet by NVIDIA, without sparsity: bf16 TFLOP/s, memory GB/s. By words of the device's
# name; a card that is not here is measured against its own matrix products.
PEAKS = {
    "H200": (989, 4800),
    "H100 PCIe": (756, 2000),
    "H100 80GB HBM3": (989, 3350),  # SXM
    "A100-SXM4-80GB": (312, 2039),
    "A100-SXM4-40GB": (312, 1555),
    "A100 80GB PCIe": (312, 1935),
    "L40S": (362, 864),
    "L4": (121, 300),
    "RTX 4090": (165, 1008),
    "RTX 3090": (71, 936),
}


def main() -> int:
    arguments = parse_arguments()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report: dict[str, Any] = {"machine": machine(device), "skipped": [], "tests": [], "speed": [], "benchmarks": []}
    print(json.dumps(report["machine"], indent=1), flush=True)
    if arguments.only in (None, "tests"):
        run_tests(out, report)
    if arguments.only in (None, "speed"):
        measure_speed(device, report)
    if arguments.only in (None, "benchmarks"):
        run_benchmarks(device, out, report)
    report["failed"] = [row["name"] for key in ("tests", "speed", "benchmarks") for row in report[key] if row["failed"]]
    write_json(out / "report.json", report)
    text = as_markdown(report)
    (out / "report.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"{out / 'report.json'} and {out / 'report.md'}")
    return 1 if report["failed"] else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/gpu_check", help="folder of the report (default results/gpu_check)")
    parser.add_argument("--only", choices=["tests", "speed", "benchmarks"])
    return parser.parse_args()


def machine(device: torch.device) -> dict[str, Any]:
    """What this was measured on."""
    facts = {"python": platform.python_version(), "torch": torch.__version__, "vfmtok": vfmtok.__version__}
    if device.type == "cpu":
        return facts | {"device": f"no GPU; {machine_line(device)}"}
    found = torch.cuda.get_device_properties(0)
    peak = stated_peak(found.name)
    return facts | {
        "device": found.name,
        "gpus": torch.cuda.device_count(),
        "memory_gib": round(found.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "stated_bf16_tflops": peak and peak[0],
        "stated_gb_per_s": peak and peak[1],
    }


def stated_peak(name: str) -> tuple[int, int] | None:
    return next((peak for part, peak in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)


# --------------------------------------------------------------------------------------
# Tests
# --------------------------------------------------------------------------------------


def run_tests(out: Path, report: dict[str, Any]) -> None:
    """The tests marked ``gpu``, one row each."""
    results = out / "tests.xml"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests", f"--junitxml={results.absolute()}"]
    ended = run_limited(command, TEST_MINUTES, out / "tests.log")
    if not results.exists():
        report["tests"].append({"name": "pytest -m gpu", "failed": True, "said": ended or f"see {out / 'tests.log'}"})
        return
    for case in ElementTree.parse(results).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        skipped = case.find("skipped")
        wrong = [found for kind in ("failure", "error") if (found := case.find(kind)) is not None]
        if skipped is not None:
            report["skipped"].append(f"{name}: {skipped.get('message')}")
            continue
        said = wrong[0].get("message", "").splitlines()[0] if wrong else "passed"
        report["tests"].append({"name": name, "failed": bool(wrong), "seconds": float(case.get("time")), "said": said})
    if ended is not None and not any(row["failed"] for row in report["tests"]):  # no tests, or cut short
        report["tests"].append({"name": "pytest -m gpu", "failed": True, "said": ended})


def run_limited(command: list[str], minutes: float, log: Path) -> str | None:
    """Run a command in the repository with its output in ``log``; what went wrong, or None."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (
        open(log, "w", encoding="utf-8") as file,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            code = process.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it started
            return f"stopped after {minutes:g} minutes, see {log}"
    return None if code == 0 else f"exit code {code}, see {log}"


# --------------------------------------------------------------------------------------
# Speed
# --------------------------------------------------------------------------------------


def measure_speed(device: torch.device, report: dict[str, Any]) -> None:
    """Training steps and sampling; on the CPU with tiny models."""
    large = device.type == "cuda"
    if not large:
        report["skipped"].append("speed of the published sizes: no GPU; tiny models stand for them here")
    precision = "bf16" if large else "fp32"
    rate = product_rate(device, DTYPES[precision])
    peak = stated_peak(torch.cuda.get_device_name()) if large else None
    against = peak[0] * 1e12 if peak else rate
    report["machine"] |= {"matrix_product_tflops": rate / 1e12, "mfu_against": "stated peak" if peak else "measured"}
    stages: dict[str, Callable[[], dict[str, Any]]] = {}
    for batch in (16, 64) if large else (2,):
        stages[f"tokenizer, training step, batch {batch}"] = functools.partial(tokenizer_step, device, batch, large)
    for name, batch in (("GPT-B", 64), ("GPT-L", 64), ("GPT-L", 256)) if large else (("GPT-B", 2),):
        step = functools.partial(gpt_step, device, name, batch, large)
        stages[f"{name}, training step, batch {batch}"] = step
    for batch in (1, 64) if large else (2,):
        for scale in (1.0, 1.5):
            name = f"GPT-L, sampling, batch {batch}, CFG {scale:g}"
            ids: dict[str, torch.Tensor] = {}  # of this name, by cache
            for cache in CACHES:
                step = functools.partial(sampling, device, batch, scale, cache, ids, large)
                stages[f"{name}, {cache} cache"] = step
    for name, stage in stages.items():
        row = {"name": name if large else f"tiny model for: {name}", "precision": precision, "failed": False}
        try:
            found = stage()
            if "flops" in found:
                found["mfu"] = found["flops"] / found["seconds"] / against
            row |= found
        except (RuntimeError, vfmtok.VFMTokError) as error:  # out of memory, a kernel that this card lacks
            row |= {"failed": True, "said": str(error).splitlines()[0]}
        report["speed"].append(row)
        print(row, flush=True)
        if large:
            torch.cuda.empty_cache()


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


def tokenizer_step(device: torch.device, batch: int, large: bool) -> dict[str, Any]:
    """Forward, backward and AdamW of the reconstruction and codebook losses; without LPIPS and a discriminator."""
    config = vfmtok.load_config(ROOT / ("configs/vit_transformer.yaml" if large else "configs/tiny.yaml"))
    model = vfmtok.build_tokenizer(config).to(device).train()
    images = torch.rand(batch, 3, config.image_size, config.image_size, device=device) * 2 - 1

    def loss():
        out = model(images)
        return (out.reconstruction - images).square().mean() + sum(out.losses.values())

    return timed_step(model, loss, device) | {"count": batch, "unit": "images"}


def gpt_step(device: torch.device, name: str, batch: int, large: bool) -> dict[str, Any]:
    """Forward, backward and AdamW on random tokens."""
    sizes = {} if large else {"n_layer": 2, "dim": 64, "n_head": 4, "num_tokens": 16, "vocab_size": 64}
    config = vfmtok.gpt_config(name, **sizes)
    model = vfmtok.build_generator(config).to(device).train()
    ids = torch.randint(config.vocab_size, (batch, config.num_tokens), device=device)
    labels = torch.randint(config.num_classes, (batch,), device=device)
    found = timed_step(model, lambda: sum(model.loss(ids, labels).values()), device)
    return found | {"count": batch * config.num_tokens, "unit": "tokens"}


def timed_step(model: torch.nn.Module, loss: Callable[[], torch.Tensor], device: torch.device) -> dict[str, Any]:
    """Median seconds of a training step, its FLOPs and the peak of memory."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, fused=device.type == "cuda")

    def step() -> None:
        with autocast(device):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with FlopCounterMode(display=False) as counter:
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(timed(step, device) for _ in range(10 if device.type == "cuda" else 2))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {"seconds": seconds, "flops": counter.get_total_flops(), "peak_gib": peak}


def sampling(
    device: torch.device, batch: int, scale: float, cache: str, ids: dict[str, torch.Tensor], large: bool
) -> dict[str, Any]:
    """``vfmtok.generate`` of whole images. ``ids`` are those of the caches that were measured before, to compare with;
    memory that is still reserved after the second call is what CUDA graphs did not give back."""
    sizes = {} if large else {"n_layer": 2, "dim": 64, "n_head": 4, "num_tokens": 16, "vocab_size": 64}
    config, gpu = vfmtok.gpt_config("GPT-L", **sizes), device.type == "cuda"
    torch.manual_seed(0)
    model = vfmtok.build_generator(config)
    torch.nn.init.normal_(model.output.weight, std=0.1)  # or all logits were equal
    model = model.to(device, torch.bfloat16 if large else torch.float32).eval()
    labels = torch.arange(batch, device=device) % config.num_classes

    def draw() -> None:
        ids[cache] = vfmtok.generate(model, labels, cfg_scale=scale, kv_cache=cache)

    draw()  # warms up
    if gpu and cache == "fixed" and not recorder_of(model).usable:
        raise RuntimeError("no CUDA graphs: see the warning above")
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
    found = {"seconds": timed(draw, device), "count": batch * config.num_tokens, "batch": batch, "unit": "tokens"}
    same = (ids[cache][:, :8] == ids["growing"][:, :8]).double().mean().item()
    found["said"] = f"{same:.0%} of the first 8 tokens as by the growing cache"
    if gpu:
        found["peak_gib"] = torch.cuda.max_memory_reserved() / 2**30  # graphs keep what they have not allocated, too
        torch.cuda.empty_cache()
        found["said"] += f", {(torch.cuda.memory_reserved() - before) / 2**20:.0f} MiB kept"
    return found


# --------------------------------------------------------------------------------------
# The other benchmarks, and the report
# --------------------------------------------------------------------------------------


def run_benchmarks(device: torch.device, out: Path, report: dict[str, Any]) -> None:
    """Their tables go into logs beside the report."""
    tiny = ["--config", "configs/tiny.yaml", "--repeat", "1", "--precision", "fp32"]
    short = ["--tokens", "4", "--batch", "1", "--steps", "1", "--precision", "fp32"]
    commands = {"tokenizer": [] if device.type == "cuda" else tiny, "sampling": [] if device.type == "cuda" else short}
    for name, options in commands.items():
        log = out / f"{name}.log"
        ended = run_limited([sys.executable, f"benchmarks/{name}.py", *options], BENCHMARK_MINUTES, log)
        row = {"name": f"benchmarks/{name}.py", "failed": ended is not None, "said": ended or f"see {log}"}
        report["benchmarks"].append(row)


def as_markdown(report: dict[str, Any]) -> str:
    """Device, tests, speed, and what was skipped."""
    lines = ["# GPU check", "", ", ".join(f"{name} {value}" for name, value in report["machine"].items()), ""]
    passed = sum(not row["failed"] for row in report["tests"])
    lines += [f"Tests: {passed} passed, {len(report['tests']) - passed} failed.", ""]
    if report["speed"]:
        lines += [
            "| what | precision | step | a second | MFU | peak memory | besides |",
            "|---|---|---|---|---|---|---|",
        ]
    for row in report["speed"]:
        if row["failed"]:
            lines.append(f"| {row['name']} | {row['precision']} | failed: {row['said']} | | | | |")
            continue
        mfu = f"{row['mfu']:.0%}" if "mfu" in row else ""
        memory = f"{row['peak_gib']:.1f} GiB" if row.get("peak_gib") else ""
        each = f"{row['count'] / row['seconds']:,.0f} {row['unit']}"
        step, said = f"{row['seconds'] * 1e3:,.1f} ms", row.get("said", "")
        cells = (row["name"], row["precision"], step, each, mfu, memory, said)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {row['name']}: {row['said']}" for row in report["benchmarks"])]
    lines += [f"- FAILED {row['name']}: {row['said']}" for row in report["tests"] if row["failed"]]
    lines += ["", f"Skipped: {len(report['skipped'])}", *(f"- {line}" for line in report["skipped"])]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
