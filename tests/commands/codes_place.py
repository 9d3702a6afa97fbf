"""What `vfmtok codes` is tried on: a small dataset and a tiny tokenizer."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from photographs import jpeg, photographs

import vfmtok
from vfmtok.data.records import Record, write_records

ENVIRONMENT = {  # of commands in processes of their own
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": os.pathsep.join(sys.path),
}
TINY = Path(__file__).parents[2] / "configs" / "tiny.yaml"


class Place:
    """A small dataset and a tiny tokenizer on disk."""

    def __init__(self, folder: Path, count: int):
        self.data, self.weights, self.encoder = folder / "lmdb", folder / "tokenizer.pt", folder / "encoder.pt"
        images = [photo.resize((72, 56)) for photo in photographs()]
        records = [Record(jpeg(images[i % 8].rotate(4 * i)), i % 3, f"{i}.jpg") for i in range(count)]
        write_records(self.data, records, classes=["cat", "a very long class name, as ImageNet has them", "Ωmega"])
        torch.manual_seed(0)
        torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), self.encoder)
        self.tokenizer = vfmtok.VFMTok(vfmtok.load_config(TINY, [f"encoder.weights={self.encoder}"])).eval()
        torch.save(vfmtok.to_released(self.tokenizer), self.weights)

    def arguments(self, out: Path, *more: str) -> list[str]:
        return [
            "codes", str(self.data), str(out), "--vq-ckpt", str(self.weights), "--transformer-config-file", str(TINY),
            "--set", f"encoder.weights={self.encoder}", "--batch-size", "4", "--num-workers", "0", *more,
        ]  # fmt: skip


def in_one_thread(folder: Path, count: int) -> Iterator[Place]:
    """A fixture's: a place of so many images, and one thread while it is in use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the subprocesses: sums must be taken in the same order
    yield Place(folder, count)
    torch.set_num_threads(threads)


def killed_after(rows: int, command: list[str], out: Path) -> int:
    """Start a command that writes a cache to ``out`` and kill it once so many rows are done: its exit status."""
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline, done, progress = time.monotonic() + 120, 0, out / "progress.bin"
    while done < rows and time.monotonic() < deadline and process.poll() is None:
        done = sum(progress.read_bytes()) if progress.exists() else 0
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    return process.wait()
