#!/usr/bin/env bash
# The published GPT-B (111 M parameters): 300 epochs on the tokens of ImageNet by the published tokenizer.
#   vfmtok codes imagenet/train_lmdb codes/train --vq-ckpt yexiguafu/VFMTok
#   scripts/train_gpt_b.sh --code-path codes/train [ARGS OF train_c2i.py]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
exec "$root/scripts/torchrun.sh" train_c2i.py \
    --gpt-model GPT-B --vq-ckpt yexiguafu/VFMTok --epochs 300 --global-batch-size 256 --lr 1e-4 \
    --mixed-precision bf16 --ema --ckpt-every 10000 --results-dir results/GPT-B "$@"
