#!/usr/bin/env bash
# The published GPT-XXL (1.4 B parameters): 200 epochs on the tokens of ImageNet by the published tokenizer.
#   vfmtok codes imagenet/train_lmdb codes/train --vq-ckpt yexiguafu/VFMTok
#   scripts/train_gpt_xxl.sh --code-path codes/train [ARGS OF train_c2i.py]
# Weights and optimizer are spread over the GPUs.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
exec "$root/scripts/torchrun.sh" train_c2i.py \
    --gpt-model GPT-XXL --vq-ckpt yexiguafu/VFMTok --epochs 200 --global-batch-size 256 --lr 1e-4 \
    --mixed-precision bf16 --ema --ckpt-every 10000 --parallel fsdp --results-dir results/GPT-XXL "$@"
