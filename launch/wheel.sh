#!/usr/bin/env bash
# Builds the wheel and tries it as a stranger would: installed into a fresh environment, in an empty folder without the
# checkout, through the demo's steps. Arguments are Pythons, such as python3.11 python3.12 (PFGM_JAX_PYTHON or python3).
# PFGM_JAX_WHEEL_CONFIG (digits) is what is trained: digits:quick takes two minutes a Python.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
config="${PFGM_JAX_WHEEL_CONFIG:-digits}"
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
say() { printf '\n== %s\n' "$*"; }

[ $# -gt 0 ] || set -- "${PFGM_JAX_PYTHON:-python3}"
say "building with $("$1" --version)"
"$1" -m venv "$place/build"
"$place/build/bin/pip" install --quiet --disable-pip-version-check build
"$place/build/bin/python" -m build --outdir "$place/dist" "$root" > "$place/build.log" 2>&1 || { tail -n 20 "$place/build.log"; exit 1; }
ls -l "$place/dist"

for python in "$@"; do
    say "$("$python" --version): installing the wheel"
    venv="$place/venv" work="$place/work"
    rm -rf "$venv" "$work"
    mkdir "$work"
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-compile "$place"/dist/*.whl
    cd "$work"
    "$venv/bin/pfgm-jax" --mode=doctor
    "$venv/bin/pfgm-jax" --config="$config" --workdir=runs/digits
    "$venv/bin/pfgm-jax" --mode=sample --workdir=runs/digits --config.sample.solver=heun --config.sample.n=16
    "$venv/bin/pfgm-jax" --mode=evaluate --workdir=runs/digits
    "$venv/bin/python" -c "import pfgm_jax; print(pfgm_jax.load('pretrained:digits'))"
    cd "$root"
done
say "the wheel works with: $*"
