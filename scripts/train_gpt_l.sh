#!/usr/bin/env bash
# The published GPT-L (343 M parameters): 300 epochs on the tokens of ImageNet by the published tokenizer.
#   vfmtok codes imagenet/train_lmdb codes/train --vq-ckpt yexiguafu/VFMTok
#   scripts/train_gpt_l.sh --code-path codes/train [ARGS OF train_c2i.py]
# 19.4 hours on 8 H800 GPUs, says the paper.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
exec "$root/scripts/torchrun.sh" train_c2i.py \
    --gpt-model GPT-L --vq-ckpt yexiguafu/VFMTok --epochs 300 --global-batch-size 256 --lr 1e-4 \
    --mixed-precision bf16 --ema --ckpt-every 10000 --results-dir results/GPT-L "$@"
