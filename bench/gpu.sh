#!/usr/bin/env bash
# One machine with one GPU, at most ten minutes: CUDA, bfloat16, channels-last, compile, decoding on the device, memory;
# then CIFAR-10, ResNet-56 -> ResNet-20, with a shortened schedule.
#
#   bench/gpu.sh [--data 'torchvision:CIFAR10?root=data'] [--out DIR]
#   bench/gpu.sh --tiny [--out DIR]     the same steps on CPUs with next to no data: does the script itself work?
#
# Each step prints one JSON object: name, seconds, ok. A step that fails is said and the next ones go on; the exit code
# is then 1. What the steps print is in DIR/STEP.log.
set -uo pipefail
cd "$(dirname "$0")/.."

data='torchvision:CIFAR10?root=data' out='' tiny=''
while [ $# -gt 0 ]; do
    case $1 in
        --tiny) tiny=1; shift ;;
        --data|--out)
            [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2; exit 2; }
            [ "$1" = --data ] && data=$2 || out=$2
            shift 2 ;;
        *) echo "error: unknown option $1; known: --tiny, --data, --out" >&2; exit 2 ;;
    esac
done
out=${out:-$(mktemp -d)}
mkdir -p "$out" || exit 2
python=${PYTHON:-python}

if [ -n "$tiny" ]; then
    whole=3600 device=cpu teacher=resnet8 student=resnet8 limit=200 epochs=1 student_epochs=1 batch=50
    data='digits?limit=200'
else
    whole=600 device=cuda teacher=resnet56 student=resnet20 limit=10000 epochs=8 student_epochs=8 batch=256
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
        || { echo "error: torch finds no GPU; with --tiny the script tries itself out on CPUs" >&2; exit 2; }
fi

began=$SECONDS failed=0
step() {  # NAME COMMAND...: at most what is left of the whole time; with the most memory that the GPU had in use
    local name=$1 start=$SECONDS left=$((whole - SECONDS + began)) ok=true memory=0 watch=''
    shift
    if [ $device = cuda ] && command -v nvidia-smi > /dev/null; then
        nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits --loop-ms=500 > "$out/memory.log" &
        watch=$!
    fi
    timeout "$((left > 1 ? left : 1))" "$@" > "$out/$name.log" 2>&1 || { ok=false; failed=1; }
    [ -z "$watch" ] || { kill "$watch"; memory=$(sort -n "$out/memory.log" | tail -n 1); }
    echo "{\"name\": \"$name\", \"seconds\": $((SECONDS - start)), \"gpu_mib\": ${memory:-0}, \"ok\": $ok}"
    $ok || tail -n 3 "$out/$name.log" | sed 's/^/    /'
}
cli() { "$python" cli.py "$@"; }
export -f cli
export python

run() { step "$1" bash -c 'cli "$@"' cli "${@:2}"; }

step machine "$python" -m bench._on_device --machine --device $device
run teacher train-teacher --data "$data" --teacher $teacher --transform none --epochs $epochs --batch-size $batch \
    --device $device --out "$out/teacher"
cache=(cache-teacher --data "$data" --teacher $teacher --weights "$out/teacher" --device $device)
run cache-float32 "${cache[@]}" --out "$out/float32.zarr"
run cache-fast "${cache[@]}" --precision bfloat16 --channels-last --limit $limit --out "$out/fast.zarr"
run cache-compiled "${cache[@]}" --compile --limit $limit --out "$out/compiled.zarr"
run cache-topk "${cache[@]}" --encoding topk --top-k 3 --out "$out/topk.zarr"
run verify verify "$out/float32.zarr" --data "$data" --recompute 64 --weights "$out/teacher" --device $device
for store in float32 topk; do
    step "decode-$store" "$python" -m bench._on_device --store "$out/$store.zarr" --device $device
done
learn=(train-student --store "$out/float32.zarr" --data "$data" --student $student --epochs $student_epochs
    --batch-size $batch --lr 0.1 --device $device)
[ -z "$tiny" ] || learn+=(--eval-data digits?split=test)
run student-labels "${learn[@]}" --loss ce --out "$out/runs/ce"
run student-kd "${learn[@]}" --loss kd --out "$out/runs/kd"
run student-fast "${learn[@]}" --loss kd --precision bfloat16 --channels-last --out "$out/runs/fast"
run student-compiled "${learn[@]}" --loss kd --compile --out "$out/runs/compiled"
run compare compare "$out/runs"
cat "$out"/machine.log "$out"/decode-*.log "$out/compare.log"
echo "{\"name\": \"whole\", \"seconds\": $((SECONDS - began)), \"ok\": $([ $failed = 0 ] && echo true || echo false)}"
exit $failed
