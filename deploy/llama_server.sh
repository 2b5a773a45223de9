#!/usr/bin/env bash
# Builds llama.cpp's `llama-server` from the sources that the llama-cpp-python sdist carries and
# prints the path of the binary; the next call only prints it. About six minutes on two cores, and
# 15 MB in the end. For the tests (`make test-llama`) and for whoever wants a server for the
# profiles with `server = "llamacpp"`: then CMAKE_ARGS="-DGGML_CUDA=ON" uses an NVIDIA GPU.
#
#   LAKEHOUSE_LLAMA_DIR   where the binary is kept
#   CMAKE_ARGS            more options for cmake; another set of them is another build
#   JOBS                  compilers at once
set -euo pipefail

version=0.3.36
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e

say() { printf '%s\n' "$*" >&2; }
die() { say "$1"; exit 1; }

here=$(cd "$(dirname "$0")" && pwd)
home=${LAKEHOUSE_LLAMA_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/lakehouse/llama-server-$version}
mkdir -p "$home"
home=$(cd "$home" && pwd)

# Two calls at once would compile into one folder: the second waits and finds the first one's binary.
exec 9>"$home/.lock"
flock 9

# It is compiled for this CPU: in a home folder that moved to another machine it would die of SIGILL.
cpu=$(grep -m1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null || uname -m)
wanted=$(printf '%s\n' "$version" "${CMAKE_ARGS:-}" "$cpu" | sha256sum | cut -d' ' -f1)
if [ "$(cat "$home/.made" 2>/dev/null)" = "$wanted" ] && "$home/llama-server" --version >/dev/null 2>&1; then
  echo "$home/llama-server"
  exit 0
fi

for compiler in cc c++; do
  command -v "$compiler" >/dev/null || die "A C++ compiler is needed and $compiler is not on PATH; install it (apt-get install g++) and run this again."
done
python=$here/../.venv/bin/python
[ -x "$python" ] || python=$(command -v python3) || die "python3 is needed, to fetch the sources with pip, and is not on PATH."
"$python" -m pip --version >/dev/null 2>&1 || python=$(command -v python3)
"$python" -m pip --version >/dev/null 2>&1 || die "pip is needed to fetch the sources; install it (apt-get install python3-pip) and run this again."
pip=("$python" -m pip --disable-pip-version-check --no-input --quiet)

rm -f "$home/.made"
build=$home/build
mkdir -p "$build"

cmake=(cmake)
if ! command -v cmake >/dev/null; then
  say "fetching cmake"
  "${pip[@]}" install --only-binary :all: --upgrade --target "$build/cmake" 'cmake>=3.21,<5'
  cmake=(env "PYTHONPATH=$build/cmake" "$build/cmake/bin/cmake")
fi

sdist=$build/llama_cpp_python-$version.tar.gz
fetched() { echo "$sha256  $sdist" | sha256sum --check --status 2>/dev/null; }
if ! fetched; then
  say "fetching the sources (74 MB)"
  echo "llama-cpp-python==$version --hash=sha256:$sha256" > "$build/requirements.txt"
  "${pip[@]}" download --no-deps --no-binary llama-cpp-python --require-hashes -r "$build/requirements.txt" -d "$build"
  fetched || die "$sdist isn't what it was when this was written (sha256 $sha256); delete it and run this again."
fi
sources=$build/llama_cpp_python-$version/vendor/llama.cpp
rm -rf "${sources%/vendor/*}"
tar -xzf "$sdist" -C "$build" "llama_cpp_python-$version/vendor/llama.cpp"

say "compiling llama-server (minutes; log in $build/log)"
{
  # No user interface: its assets would be fetched from elsewhere while it is built.
  # shellcheck disable=SC2086  # CMAKE_ARGS are words
  "${cmake[@]}" -S "$sources" -B "$build/out" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
    -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF ${CMAKE_ARGS:-} &&
    nice "${cmake[@]}" --build "$build/out" --target llama-server --parallel "${JOBS:-$(nproc)}"
} > "$build/log" 2>&1 || { tail -n 20 "$build/log" >&2; die "llama-server could not be built; the whole log is $build/log."; }

install -m 755 "$build/out/bin/llama-server" "$home/llama-server"
"$home/llama-server" --version >/dev/null 2>&1 || die "$home/llama-server was built and doesn't start; the log is $build/log."
printf '%s' "$wanted" > "$home/.made"
rm -rf "$build"
echo "$home/llama-server"
