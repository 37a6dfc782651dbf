#!/usr/bin/env bash
# The oldest and the newest Python from 3.10 on that the machine offers (in PATH or under pyenv),
# beside the one of .venv, which runs the tests: tests/pythons.sh [PYTHON OF .venv]. With each, every
# pinned package can be had, all sources compile, and the extension is built without CUDA and gives
# the labels that it gives with .venv. torch stays out: for another Python it means gigabytes.
set -euo pipefail
cd "$(dirname "$0")/.."
tests_run_with=$(realpath -s "${1:-.venv/bin/python}")

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

found=()
for minor in {10..19}; do
    for python in "python3.$minor" "$HOME/.pyenv/versions/3.$minor".*/bin/python; do
        if [ "$(version "$python")" = "3.$minor" ]; then
            found+=("$python")
            break
        fi
    done
done
if [ ${#found[@]} -lt 2 ]; then
    echo "skipped: this machine offers ${#found[@]} Python from 3.10 on, and no other to try"
    exit
fi

mkdir -p build
"$tests_run_with" - <<'EOF'
import fastscnn, numpy
from pathlib import Path
from fastscnn.export.fscnn import encode
from fastscnn.media.demo import street_scene
model, frame = fastscnn.load("camvid", device="cpu"), street_scene(120, 200, 3)
Path("build/pythons.fscnn").write_bytes(encode(model))
numpy.savez("build/pythons.npz", frame=frame, labels=model.segment(frame, size=frame.shape[:2]))
EOF

for python in "${found[0]}" "${found[-1]}"; do
    version=$(version "$python")
    if [ "$version" = "$(version "$tests_run_with")" ]; then
        echo "Python $version: runs the tests"
        continue
    fi
    venv=$PWD/build/python-$version
    "$python" -m venv --clear "$venv"
    pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check install --only-binary=:all:)
    pinned=$(grep -v -E '^(torch|triton)==' requirements-dev.txt)
    "${pip[@]}" --dry-run --no-deps -r <(echo "$pinned")
    "${pip[@]}" -r <(grep -E '^(numpy|pybind11|cmake|ninja)==' <<<"$pinned")
    "$venv/bin/python" -W error -m compileall -q -f fastscnn fastscnn_kernels tests bench setup.py

    # One build folder for all: only the bindings know Python.
    export PATH="$venv/bin:$PATH"
    cmake -S . -B build/pythons -G Ninja -U '*Python*' -U '*PYTHON_*' -DFASTSCNN_PYTHON=ON \
        -DFASTSCNN_CUDA=0 -DPython_EXECUTABLE="$venv/bin/python" \
        -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" >"$venv/build.log"
    cmake --build build/pythons -j "${MAX_JOBS:-$(nproc)}" >>"$venv/build.log"
    module=_C$(python -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
    cp "build/pythons/$module" "$venv/lib/python$version/site-packages/"
    python - <<'EOF'
import numpy, platform, _C
from pathlib import Path
with numpy.load("build/pythons.npz") as file:
    frame, expected = file["frame"], file["labels"]
found, (h, w) = numpy.zeros_like(expected), expected.shape
network = _C.Network.from_file(Path("build/pythons.fscnn").read_bytes())
frames = (frame.ctypes.data, True, 1, h, w, 3 * w, False)
network.run(frames, (h, w), (h, w), {"labels": found.ctypes.data}, 0.0, 2)
assert numpy.array_equal(found, expected) and len(numpy.unique(found)) > 3
print(f"Python {platform.python_version()}: installs, compiles, builds, and gives the same labels")
EOF
done
