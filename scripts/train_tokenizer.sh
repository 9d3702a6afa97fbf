#!/usr/bin/env bash
# The published tokenizer: VFMTok on DINOv2-L, 50 epochs of ImageNet at 336 px (1.5 days on 16 H800 GPUs).
#   scripts/train_tokenizer.sh --data-path imagenet [ARGS OF vq_train.py]
# DINOv2-L is taken from init_models/ or the Hub. Several machines: see torchrun.sh.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
exec "$root/scripts/torchrun.sh" vq_train.py \
    --transformer-config-file "$root/configs/vit_transformer.yaml" --set tokenizer.encoder.weights=auto \
    --image-size 336 --enable-vfm-recon --disc-type dinogan --epochs 50 --global-batch-size 256 --lr 1e-4 \
    --mixed-precision bf16 --ema --ckpt-every 5000 --results-dir results/vfmtok "$@"
