#!/usr/bin/env bash
# Train and measure on a GPU machine that has torch but no network, in pieces that fit its time limits.
#   bash figures/gpu_job.sh pack DIR           here: DIR holds ffhq128/, ffhq256/, stylegan256/; makes runs/pack/ (faces and wheels, about 55 MB)
#   bash figures/gpu_job.sh bench-gpu 8        there: speed and memory at 512 px, needs no faces; the same line again measures what is left. Its file belongs into figures/gpu/
#   bash figures/gpu_job.sh prior128 8         there: 8 minutes; the same line again goes on from the checkpoint
#   bash figures/gpu_job.sh restorer128 8      there, after prior128
#   bash figures/gpu_job.sh ablations 8        there: Table 4 and Fig. 7 at 64 px on the bundled prior, three seeds; no other job is needed before
# Results are copied to $OUT (default runs/out): averaged weights in fp16, config, curves, the last sheets.
set -euo pipefail
cd "$(dirname "$0")/.."
job=$1
pack=runs/pack
if [ "$job" = pack ]; then
    mkdir -p "$pack/wheels"
    python - "$2" "$pack" <<'PY'
import pathlib, sys, tarfile, tempfile
import cv2
data, pack = map(pathlib.Path, sys.argv[1:])
best = {p.stem: p for p in sorted(data.glob("ffhq128/*.jpg"))} | {p.stem: p for p in sorted(data.glob("ffhq256/*.jpg"))}    # the larger files are cleaner
groups = {"train128": {n: p for n, p in best.items() if int(n) < 4700} | {f"s{p.stem}": p for p in sorted(data.glob("stylegan256/*.jpg"))},
          "valid128": {n: p for n, p in best.items() if int(n) >= 4700}}
with tempfile.TemporaryDirectory() as tmp, tarfile.open(pack / "faces128.tar", "w") as tar:
    for group, files in groups.items():
        folder = pathlib.Path(tmp, group)
        folder.mkdir()
        for name, p in sorted(files.items()):
            cv2.imwrite(str(folder / f"{name}.jpg"), cv2.resize(cv2.imread(str(p)), (128, 128), interpolation=cv2.INTER_AREA), [cv2.IMWRITE_JPEG_QUALITY, 88])
        tar.add(folder, group)
        print(group, len(files))
PY
    python -m pip download --quiet --no-deps --only-binary :all: --dest "$pack/wheels" tyro typeguard shtab docstring_parser typing_extensions pyyaml tensorboard protobuf markdown werkzeug \
        absl-py tensorboard-data-server grpcio requests urllib3 idna certifi charset-normalizer facenet-pytorch==2.5.3 --python-version 3.12 --platform manylinux2014_x86_64
    [ ! -d .peer ] || tar -C .peer --exclude=__pycache__ -cf "$pack/peer.tar" basicsr gfpgan facexlib       # the official step beside ours, see tests/peer/README.md
    du -sh "$pack"
    exit
fi
minutes=$2
python -m pip install --quiet --no-index --no-deps --find-links "$pack/wheels" "$pack"/wheels/*.whl || echo "some wheels were not installed; going on"
if [ "$job" = bench-gpu ]; then
    [ -d .peer ] || { [ -e "$pack/peer.tar" ] && mkdir .peer && tar -C .peer -xf "$pack/peer.tar"; } || echo "the official packages are not here; ours is measured alone"
    found=${OUT:-runs/out}/bench-gpu.json
    mkdir -p "$(dirname "$found")"
    [ ! -e runs/bench-gpu.json ] || cp runs/bench-gpu.json "$found"                                          # what was measured before
    trap '[ ! -e "$found" ] || cp "$found" runs/bench-gpu.json' EXIT TERM
    PYTHONPATH=$PWD python tests/bench/training.py --gpu --minutes "$minutes" --out "$found" ${BENCH_OPTIONS:-}
    exit
fi
[ -d runs/train128 ] || tar -xf "$pack/faces128.tar" -C runs
export PYTHONPATH=$PWD
train() { python -c "from gfpgan_edu.cli import main; main()" train "$@" --data runs/train128 --out "runs/$job" --minutes "$minutes" --set run.workers=12; }
case $job in
    prior128) train prior --preset faces128 ;;
    restorer128) train restorer --preset faces128 --prior runs/prior128/ema.safetensors --valid runs/valid128 --set boxes=template ;;
    ablations) python -c "from gfpgan_edu.cli import main; main()" ablate --data runs/train128 --valid runs/valid128 --out "runs/$job" --minutes "$minutes" --minutes-each 0.8 --seeds 3 \
        --set model.size=64 model.style_dim=64 model.narrow=0.125 prior=bundled degradation=severe run.batch=16 run.precision=bf16 run.workers=12 --metrics psnr ssim deg:bundled ;;
    *) echo "no job $job: pack, bench-gpu, prior128, restorer128, ablations" >&2; exit 2 ;;
esac
out=${OUT:-runs/out}
mkdir -p "$out"
halve() { python - "$1" "$2" <<'PY'
import sys                                                              # fp16 halves what travels
from safetensors import safe_open
from safetensors.torch import save_file
with safe_open(sys.argv[1], "pt") as f:
    save_file({k: f.get_tensor(k).half() if f.get_tensor(k).is_floating_point() else f.get_tensor(k) for k in f.keys()}, sys.argv[2], metadata=f.metadata())
PY
}
if [ "$job" = ablations ]; then                                         # all averages in pieces of 16.5 MB; join with cat, unpack into runs/, score with figures/ablation.py
    for run in runs/ablations/*-s?; do
        mkdir -p "runs/travel/ablations/$(basename "$run")"
        [ ! -e "$run/ema.safetensors" ] || halve "$run/ema.safetensors" "runs/travel/ablations/$(basename "$run")/ema.safetensors"
        cp "$run/metrics.jsonl" "runs/travel/ablations/$(basename "$run")/"
    done
    cp runs/ablations/budget.yaml runs/travel/ablations/
    for file in table.md ablation.json; do [ ! -e "runs/ablations/$file" ] || cp "runs/ablations/$file" "$out/ablations-$file"; done
    tar -C runs/travel -cf - ablations | split -b 16500000 - "$out/ablations.tar."
    exit
fi
halve "runs/$job/ema.safetensors" "$out/$job.safetensors"
cp "runs/$job/config.yaml" "$out/$job.yaml"
cp "runs/$job/metrics.jsonl" "$out/$job.jsonl"
for sheet in $(ls "runs/$job"/valid-*.png | tail -n 3); do cp "$sheet" "$out/$job-$(basename "$sheet")"; done
