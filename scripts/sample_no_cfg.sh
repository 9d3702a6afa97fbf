#!/usr/bin/env bash
# gFID, sFID, IS, precision and recall of 50,000 images of a published generator, without classifier-free guidance.
#   scripts/sample_no_cfg.sh GPT-L --ref-batch VIRTUAL_imagenet256_labeled.npz [ARGS OF test_net.py]
# The verdict against the paper: vfmtok reproduce gpt-l-no-cfg --ref-batch VIRTUAL_imagenet256_labeled.npz
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: scripts/sample_no_cfg.sh GPT-B|GPT-L|GPT-XL|GPT-XXL|GPT-2B|GPT-3B ARGS" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
size=$1; shift
exec "$root/scripts/torchrun.sh" test_net.py \
    --vq-ckpt yexiguafu/VFMTok --gpt-ckpt yexiguafu/VFMTok --gpt-model "$size" --image-size-eval 256 \
    --cfg-scale 1 --precision bf16 --per-proc-batch-size 50 --num-fid-samples 50000 --sample-dir results/samples "$@"
