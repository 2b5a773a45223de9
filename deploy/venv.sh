#!/usr/bin/env bash
# Makes .venv from the pins: `deploy/venv.sh` what the daemon needs, `deploy/venv.sh dev` the
# tests' tools too, `deploy/venv.sh cert` also torch and transformers, which certificates of models
# take. Needs python3 and pip; does nothing when the pins and this CPU are those
# that .venv was made for. hnswlib is compiled here (-march=native), so a .venv or a wheel
# from another CPU is never used: it would die of SIGILL.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }
die() { say "$1"; exit 1; }
sum() { cat "$@" | sha256sum | cut -d' ' -f1; }

tools=${1:-run}
pins=requirements.txt
[ "$tools" = run ] || pins=requirements-dev.txt
torch=2.13.0

find_python() {
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  die "Python 3.11, 3.12 or 3.13 is needed and none is on PATH; install it or set PYTHON=/path/to/python3."
}

# Debian packages, when they are missing and we may: otherwise the sentence says what to do.
need_packages() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"; } </dev/null >&2 ||
      die "apt-get could not install $*; install them and run make again."
  else
    die "Missing: $*. Install them (apt-get install $*) and run make again."
  fi
}

python=$(find_python)
cpu=$(grep -m1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null | sum; "$python" -V; pwd)
wanted=$( (echo "$cpu"; cat requirements*.txt pyproject.toml) | sum)
made() { [ "$(cat ".venv/.made-$1" 2>/dev/null)" = "$wanted" ]; }
enough=(run dev cert)  # a .venv with more will do
[ "$tools" = dev ] && enough=(dev cert)
[ "$tools" = cert ] && enough=(cert)
for kind in "${enough[@]}"; do
  [ -x .venv/bin/lakehouse ] && made "$kind" && exit 0
done

if ! .venv/bin/python -c '' 2>/dev/null || [ "$(.venv/bin/python -V)" != "$("$python" -V)" ]; then
  rm -rf .venv
  say "making .venv with $("$python" -V)"
  # A bare Debian has no ensurepip: then the system's pip installs into the venv from outside.
  if ! "$python" -m venv .venv >/dev/null 2>&1; then
    "$python" -m pip --version >/dev/null 2>&1 || need_packages python3-venv python3-pip
    rm -rf .venv
    "$python" -m venv .venv >/dev/null 2>&1 || "$python" -m venv --without-pip --clear .venv
  fi
fi

if .venv/bin/python -m pip --version >/dev/null 2>&1; then
  pip=(.venv/bin/python -m pip)
else
  pip=("$python" -m pip --python .venv/bin/python)
fi
install=("${pip[@]}" install --disable-pip-version-check --no-input)
[ -t 2 ] || install+=(--quiet)  # on a terminal pip shows its progress
hashed=("${install[@]}" --require-hashes --no-deps)

say "installing $pins"
"${hashed[@]}" --only-binary :all: -r "$pins" -r requirements-build.txt

if [ "$(cat .venv/.hnswlib-built-for 2>/dev/null)" != "$cpu" ]; then
  command -v g++ >/dev/null || need_packages g++
  has_header() { "$python" -c 'import os, sysconfig as s; raise SystemExit(not os.path.exists(s.get_path("include") + "/Python.h"))'; }
  has_header || need_packages python3-dev
  has_header || die "Python.h of $python is missing; install the development files of that Python and run make again."
  say "compiling hnswlib for this CPU (about a minute)"
  "${hashed[@]}" --no-build-isolation --no-binary hnswlib --no-cache-dir --force-reinstall \
    -r requirements-hnswlib.txt
  printf '%s' "$cpu" > .venv/.hnswlib-built-for
fi

if [ "$tools" = cert ]; then
  # First, by itself and without a hash: where pip is offered a CPU build (2.13.0+cpu) it takes that one.
  say "installing torch $torch"
  "${install[@]}" --no-deps "torch==$torch"
  "${hashed[@]}" --only-binary :all: -r requirements-cert.txt
  # A build for CUDA needs its libraries too.
  .venv/bin/python -c 'import torch' 2>/dev/null || "${install[@]}" "torch==$torch"
fi

"${install[@]}" --no-deps --no-build-isolation -e .
printf '%s' "$wanted" > ".venv/.made-$tools"
say ".venv is ready"
