#!/usr/bin/env bash
# The published GPT-XL (775 M parameters): 200 epochs on the tokens of ImageNet by the published tokenizer.
#   vfmtok codes imagenet/train_lmdb codes/train --vq-ckpt yexiguafu/VFMTok
#   scripts/train_gpt_xl.sh --code-path codes/train [ARGS OF train_c2i.py]
# The released weights are of 200 epochs; the paper's table says 300: --epochs 300 for those.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
exec "$root/scripts/torchrun.sh" train_c2i.py \
    --gpt-model GPT-XL --vq-ckpt yexiguafu/VFMTok --epochs 200 --global-batch-size 256 --lr 1e-4 \
    --mixed-precision bf16 --ema --ckpt-every 10000 --results-dir results/GPT-XL "$@"
