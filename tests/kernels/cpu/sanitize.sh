#!/bin/sh
# Runs a subset of the CPU tests on an extension built with AddressSanitizer and
# UndefinedBehaviorSanitizer, beside the normal one: tests/kernels/cpu/sanitize.sh [PYTHON]
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
python=$(command -v "${1:-$root/.venv/bin/python}")
python=$(cd "$(dirname "$python")" && pwd)/${python##*/}
build=$root/build/sanitize
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DFASTSCNN_CUDA=0 \
    -DFASTSCNN_SANITIZE=1 -DPython_EXECUTABLE="$python" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)"
cmake --build "$build" -j "${MAX_JOBS:-2}"

# A second tree with the same sources and this extension in it.
mkdir -p "$build/tree/fastscnn_kernels"
ln -sfn "$root/fastscnn" "$build/tree/fastscnn"
ln -sfn "$root/tests" "$build/tree/tests"
for file in "$root"/fastscnn_kernels/*; do
    case $file in *.so) ;; *) ln -sfn "$file" "$build/tree/fastscnn_kernels/" ;; esac
done
cp "$build"/_C.*.so "$build/tree/fastscnn_kernels/"

cd "$build/tree"
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0:abort_on_error=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    OMP_NUM_THREADS=1 "$python" -m pytest -q -p no:cacheprovider tests/kernels/cpu/test_cpu_ops.py \
    tests/kernels/cpu/test_cpu_heads.py tests/inference/test_int8.py \
    -k "(fuzz or layout or 7 or equal or nan or bits) and not network and not preset"
