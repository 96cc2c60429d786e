#!/usr/bin/env bash
# Everything that a machine with a GPU is needed for, within 8 minutes, into one folder: build, `pytest -m cuda`,
# compute-sanitizer (memcheck, racecheck), benchmark, training step; where data is given, a training. Needs torch, nvcc,
# cmake, ninja, pybind11, setuptools and pytest, and no network. A failing stage does not stop the next; the exit code is
# 0 only if every stage passed.
#
#   OUT=folder   where to write (default ./gpu-results): stages.txt, log.txt, and the benchmark's files
#   SMALL=1      small sizes: the quick suite in place of the default one
#   ARCHS=90     architectures to build for (default: this machine's GPU alone, which is quick)
#   SNNFAST_DATA=folder  CIFAR-10 is there: train ResNet11 on it for EPOCHS (default 20), at most TRAIN_SECONDS (240)
#   PYTHON=...   the interpreter (default python3)
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
out=${OUT:-$PWD/gpu-results}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
end=$((SECONDS + ${LIMIT:-470}))
failed=0
: > "$out/log.txt"
printf '%-10s %9s %8s\n' stage exit seconds | tee "$out/stages.txt"

# stage NAME SECONDS COMMAND...: runs it, at most so long and never past the end, and records how it went
stage() {
    local name=$1 limit=$2 begin=$SECONDS code left
    shift 2
    left=$((end - SECONDS))
    [ "$limit" -lt "$left" ] && left=$limit
    printf '\n===== %s: %s\n' "$name" "$*" >> "$out/log.txt"
    if [ "$left" -le 5 ]; then
        echo "no time left" >> "$out/log.txt"
        code=124
    else
        timeout --kill-after=10 "$left" "$@" >> "$out/log.txt" 2>&1
        code=$?
    fi
    [ "$code" -eq 0 ] || failed=1
    printf '%-10s %9s %8s\n' "$name" "$code" "$((SECONDS - begin))" | tee -a "$out/stages.txt"
}

export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
export SNNFAST_CUDA=1
archs=${ARCHS:-$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')}
export SNNFAST_CUDA_ARCHS=${SNNFAST_CUDA_ARCHS:-$archs}

sanitizer=$(command -v compute-sanitizer || true)
if [ -z "$sanitizer" ]; then
    nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
    sanitizer=$(dirname "$(readlink -f "$nvcc")")/compute-sanitizer
fi
# -P: the source folder must not take the place of the installed package
pytest=("$python" -P -m pytest -m cuda -p no:cacheprovider)

stage machine 30 sh -c 'nvidia-smi; nvcc --version; '"$python"' -m pip list'
stage build 240 "$python" -m pip install --no-build-isolation --no-deps --no-index --force-reinstall .
stage tests 150 "${pytest[@]}" -q tests
# without torch's caching of blocks an access past a tensor's end leaves its allocation, and is seen
PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage memcheck 90 "$sanitizer" --tool memcheck --error-exitcode 9 \
    --target-processes all "${pytest[@]}" -q tests/test_benchmarks.py -k variants
stage racecheck 90 "$sanitizer" --tool racecheck --error-exitcode 9 \
    --target-processes all "${pytest[@]}" -q tests/test_benchmarks.py -k variants
size=()
[ "${SMALL:-0}" = 1 ] && size=(--quick)
stage bench 240 "$python" -P -m snnfast.benchmarks --device cuda --out "$out" "${size[@]}"
net=(--batch-size 128 --precision bfloat16 --seconds 20)
[ "${SMALL:-0}" = 1 ] && net=(--batch-size 8 --width 8 --seconds 2)
stage training 120 "$python" -P -m snnfast.benchmarks.training --device cuda "${net[@]}" --out "$out/training.json"
if [ -n "${SNNFAST_DATA:-}" ]; then
    stage cifar10 "${TRAIN_SECONDS:-240}" "$python" -P -m snnfast train --data cifar10 --epochs "${EPOCHS:-20}" \
        --eval-steps 10,20 --resume --out "$out/cifar10"
fi

echo
tail -n 60 "$out/log.txt"
echo "files: $out"
exit "$failed"
