#!/bin/sh
# Runs every CUDA C++ kernel once under compute-sanitizer's memcheck and racecheck, on a machine with
# an NVIDIA GPU: tests/kernels/cuda/sanitize_gpu.sh [PYTHON]
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
python=${1:-python3}
PATH=$PATH:${CUDA_HOME:+$CUDA_HOME/bin:}/usr/local/cuda/bin
if ! command -v compute-sanitizer >/dev/null; then
    echo "not run: compute-sanitizer is neither in PATH nor in /usr/local/cuda/bin"
    exit 0
fi
cd "$root"
export PYTORCH_NO_CUDA_MEMORY_CACHING=1 # every tensor its own allocation, with its own bounds
for tool in memcheck racecheck; do
    echo "compute-sanitizer --tool $tool"
    # What torch asks of the driver in vain is not an error of ours.
    options=$([ $tool = memcheck ] && echo --report-api-errors=no || true)
    compute-sanitizer --tool $tool $options --error-exitcode 1 \
        "$python" -m pytest -q -p no:cacheprovider tests/kernels/cuda/test_cuda_gpu.py -k every_kernel_once
done
