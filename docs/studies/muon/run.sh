#!/usr/bin/env bash
# Short trainings of the quickstart's two recipes, one after the other, one thread each.
# DATA: made by `vfmtok prepare sample DATA`; TOKENIZER: a trained run of configs/vfmtok/emoji64.yaml; OUT: where runs go.
set -uo pipefail
: "${DATA:?}" "${TOKENIZER:?}" "${OUT:?}"
export OMP_NUM_THREADS=1
muon="--set optimizer.name=muon --set optimizer.decay=linear"
short="--set run.log_every=20 --set run.save_every=1000 --set run.tensorboard=false"

tokenizer() { # name, settings
    local name=$1; shift
    python vq_train.py --recipe configs/vfmtok/emoji64.yaml --data-path "$DATA" --results-dir "$OUT/tokenizer_$name" \
        --set optimizer.steps=160 --set optimizer.warmup_steps=20 --set codebook.continuous_steps=40 \
        --set run.validate_every=40 $short "$@" > "$OUT/tokenizer_$name.txt" 2>&1
}
generator() {
    local name=$1; shift
    python train_c2i.py --recipe configs/vfmtok/emoji64_gpt.yaml --code-path "$OUT/codes/train" \
        --results-dir "$OUT/gpt_$name" --set optimizer.steps=200 --set optimizer.warmup_steps=20 \
        --set run.validate_every=50 --set pictures.every=0 --set run.global_batch=16 $short "$@" > "$OUT/gpt_$name.txt" 2>&1
}

for part in train val; do
    [ -e "$OUT/codes/$part" ] ||
        vfmtok codes "$DATA/${part}_lmdb" "$OUT/codes/$part" --vq-ckpt "$TOKENIZER" --views center || exit
done
for seed in ${SEEDS:-0}; do
    generator adamw_$seed --set run.seed=$seed
    generator muon1_$seed --set run.seed=$seed $muon
    generator muon3_$seed --set run.seed=$seed $muon --set optimizer.muon_lr_factor=3
    tokenizer adamw_$seed --set run.seed=$seed
    tokenizer muon1_$seed --set run.seed=$seed $muon
    tokenizer muon3_$seed --set run.seed=$seed $muon --set optimizer.muon_lr_factor=3
done
