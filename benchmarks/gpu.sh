#!/usr/bin/env bash
# Everything that a machine with a GPU is needed for, within 8 minutes, into one folder: what the machine is, the build,
# `pytest -m cuda`, the benchmark of the kernels, a training step, compute-sanitizer (memcheck, racecheck). Needs torch,
# nvcc, cmake, ninja, pybind11, setuptools, pytest and pytest-xdist, and no network. A failing stage does not stop the
# next, but for the build; the exit code is 0 only if every stage passed.
#
#   bash benchmarks/gpu.sh --dry-run   every stage on the CPU, on tiny tensors, with stand-ins for what a GPU brings, and
#                                      the installed snnfast in place of a build
#
#   OUT=folder          where to write (default ./gpu-results): at most 8 files, of at most 16 MB
#   ARCHS=90            architectures to build for (default: this machine's GPU alone, which is quick)
#   SNNFAST_COMMIT=...  what is measured, for the results, where the source folder is a copy without git
#   WHEELS=folder       wheels of other libraries to measure too (default ./.whl, where there is one); see
#                       docs/guide/benchmarks.md
#   LIMIT=460           seconds for all of it
#   TEST_SECONDS=60     of these for the tests, which are interrupted then; what failed by then counts
#   PYTHON=...          the interpreter (default python3)
set -u
cd "$(dirname "$0")/.." || exit 1
refuse() {
    echo "gpu.sh: $*" >&2
    exit 2
}
case $* in
--dry-run) dry=1 ;;
'') dry=0 ;;
*) refuse "unknown argument '$*'; allowed is --dry-run" ;;
esac
for name in LIMIT TEST_SECONDS; do
    [[ ${!name-1} =~ ^[0-9]+$ ]] || refuse "$name must be a number of seconds, got '${!name}'"
done
python=${PYTHON:-python3}
out=${OUT:-$PWD/gpu-results}
mkdir -p "$out" && : > "$out/log.txt" || refuse "OUT must be a folder that can be written, got '$out'"
out=$(cd "$out" && pwd)
# What an earlier run left there is not this one's.
rm -f "$out"/{tests.xml,results.json,table.txt,training.json,gpu.csv}
work=$(mktemp -d "${TMPDIR:-/tmp}/snnfast-gpu.XXXXXX")
trap 'rm -rf "$work"' EXIT
end=$((SECONDS + ${LIMIT:-460}))
failed=()
running=
# timeout's group is its own: what is typed at the terminal does not reach it.
stop() {
    trap - INT TERM
    [ -z "$running" ] || kill -TERM "$running"
    echo "gpu.sh: stopped" >&2
    exit 130
}
trap stop INT TERM
printf '%-10s %5s %8s\n' stage exit seconds | tee "$out/stages.txt"

# record NAME CODE SECONDS NOTE: how a stage went
record() {
    [ "$2" -eq 0 ] || failed+=("$1")
    printf '%-10s %5s %8s  %s\n' "$@" | tee -a "$out/stages.txt"
}

# stage NAME SECONDS COMMAND...: runs it, at most so long and never past the end, and records how it went. At the limit
# it is interrupted as by Ctrl-C, so that it writes its reports, and killed where that does not help.
stage() {
    local name=$1 limit=$2 begin=$SECONDS left=$((end - SECONDS)) code=124 note= start
    shift 2
    printf '\n===== %s: %s\n' "$name" "$*" >> "$out/log.txt"
    start=$(stat -c %s "$out/log.txt")
    if [ "$left" -gt 5 ]; then
        [ "$limit" -lt "$left" ] && left=$limit
        # env: a script that was started in the background ignores SIGINT, and so would its children
        timeout --signal=INT --kill-after=10 "$left" env --default-signal=INT "$@" >> "$out/log.txt" 2>&1 &
        running=$!
        wait "$running" # which a signal ends at once
        code=$?
        running=
    else
        echo "no time left" >> "$out/log.txt"
    fi
    tail -c +$((start + 1)) "$out/log.txt" > "$work/$name.txt"
    shorten "$work/$name.txt" 1000000
    truncate -s "$start" "$out/log.txt" && cat "$work/$name.txt" >> "$out/log.txt"
    [ "$code" -eq 124 ] && note="at its limit"
    if [ "$name" = tests ]; then
        note="$(tail -n 1 "$work/tests.txt" | cut -c 1-80) $note"
        [ "$code" -eq 124 ] && passed_until_then && code=0
    fi
    record "$name" "$code" "$((SECONDS - begin))" "$note"
}

# shorten FILE BYTES: leaves out its middle where it is longer than twice that
shorten() {
    [ -f "$1" ] && [ "$(stat -c %s "$1")" -gt $((2 * $2)) ] || return 0
    { head -c "$2" "$1" && printf '\n[...]\n' && tail -c "$2" "$1"; } > "$work/short" && cp "$work/short" "$1"
}

# Interrupted at their limit, tests have passed as far as they came if the report says that some ran and none failed.
passed_until_then() {
    grep -q '<testcase' "$out/tests.xml" && grep -qE '<testsuite [^>]*errors="0" failures="0"' "$out/tests.xml"
}

# What was written and would not come back from a machine that sends 8 files of 16 MB, of plain names, two folders down.
beyond_limits() {
    find "$out" -type f -printf '%s %P\n' | while read -r bytes name; do
        [[ $name =~ ^([A-Za-z0-9._-]+/){0,2}[A-Za-z0-9._-]+$ ]] && [ "$bytes" -le 16000000 ] || echo "$name"
    done
    [ "$(find "$out" -type f | wc -l)" -le 8 ] || echo "more than 8 files"
}

for folder in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda; do
    [ -n "$folder" ] && PATH=$PATH:$folder/bin:$folder/compute-sanitizer
done
device=cuda processes=8 tests=(tests/test_cuda.py tests/test_kernels_match_reference.py) # these first
for file in tests/test_*.py; do
    [[ " ${tests[*]} " == *" $file "* ]] || tests+=("$file")
done
large=(--seconds 115) net=(--batch-size 128 --precision bfloat16 --seconds 15) pip_more=(--force-reinstall)
if [ "$dry" = 1 ]; then
    device=cpu processes=2 tests=(tests/test_cuda.py)
    large=(--small) net=(--batch-size 2 --width 2 --image-size 8 --steps 2 --seconds 0.2) pip_more=(--dry-run)
    export ARCHS=${ARCHS:-90}
    mkdir "$work/bin"
    say='echo "a stand-in of benchmarks/gpu.sh --dry-run"'
    printf '#!/bin/sh\n%s\n' "$say" | tee "$work/bin/nvidia-smi" > "$work/bin/nvcc"
    # of its options each has a value, but --version
    skip='while [[ ${1:-} == --* ]]; do shift; shift; done'
    printf '#!/bin/bash\n%s\n%s\nexec "$@"\n' "$say" "$skip" > "$work/bin/compute-sanitizer"
    chmod +x "$work"/bin/*
    PATH=$work/bin:$PATH
fi
export PATH PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
export PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
unset PYTEST_ADDOPTS
archs=${ARCHS:-$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')}
export SNNFAST_CUDA=1 SNNFAST_CUDA_ARCHS=$archs SNNFAST_CPU_SETS=native SNNFAST_BUILD_LOG=$work/build.log
"$python" -c 'import setuptools as s; raise SystemExit(int(s.__version__.split(".")[0]) < 77)' || older_setuptools=1
source=$PWD
if [ "${older_setuptools:-0}" = 1 ]; then # it refuses the licence as pyproject.toml has it
    source=$work/source
    mkdir "$source"
    cp -r CMakeLists.txt LICENSE README.md benchmarks csrc pyproject.toml setup.py snnfast "$source"
    sed -i -e 's/^license = .*/license = { text = "MIT" }/' -e '/^license-files/d' "$source/pyproject.toml"
fi
python=("$python" -P) # the source folder must not take the place of the installed package

stage machine 20 sh -c 'nvidia-smi; nvcc --version; compute-sanitizer --version; nproc; free -g; exec "$@"' sh \
    "${python[@]}" -m pip list
wheels=("${WHEELS:-.whl}"/*.whl)
if [ -e "${wheels[0]}" ]; then
    stage wheels 60 "${python[@]}" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$work/site" "${wheels[@]}"
    export PYTHONPATH=$work/site
fi
stage build 200 "${python[@]}" -m pip install -v --no-build-isolation --no-deps --no-index "${pip_more[@]}" "$source"
[ -f "$work/build.log" ] && grep ptxas -A 1 "$work/build.log" >> "$out/log.txt" # registers and spills of every kernel
if [[ " ${failed[*]-} " != *" build "* ]]; then # without, nothing else would run
    stage tests "${TEST_SECONDS:-60}" "${python[@]}" -m pytest -m cuda -n "$processes" --dist load -q \
        -p no:cacheprovider --junitxml "$out/tests.xml" "${tests[@]}"
    stage bench 130 "${python[@]}" -m snnfast.benchmarks.gpu --device "$device" --out "$out" --append "$out" \
        "${large[@]}"
    stage training 60 "${python[@]}" -m snnfast.benchmarks.training --device "$device" "${net[@]}" \
        --out "$out/training.json"
    calls=("${python[@]}" -m snnfast.benchmarks.sanitize --device "$device")
    stage kernels 40 "${calls[@]}" --kernels
    # without torch's caching of blocks an access past a tensor's end leaves its allocation, and is seen
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    for tool in memcheck racecheck; do
        stage "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all "${calls[@]}"
    done
fi
rm -f "$out"/*.part
for file in log.txt tests.xml; do
    shorten "$out/$file" 7000000
done
beyond=$(beyond_limits)
[ -z "$beyond" ]
record files $? 0 "$beyond"

for name in ${failed[@]+"${failed[@]}"}; do
    printf '\n===== %s failed:\n' "$name"
    [ -f "$work/$name.txt" ] && tail -n 15 "$work/$name.txt" | cut -c 1-300
done
echo
for file in table.txt stages.txt; do
    [ -f "$out/$file" ] && cat "$out/$file" && echo
done
[ -f "$work/kernels.txt" ] && tail -n 5 "$work/kernels.txt"
echo "files: $out"
[ "${#failed[@]}" -eq 0 ]
