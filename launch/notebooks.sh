#!/usr/bin/env bash
# Executes the notebooks from their percent scripts: environment, install, and notebooks/rendered/*.ipynb with outputs.
# Arguments are scripts, such as notebooks/1_five_minutes.py; without, all of them.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare "[notebooks]"
[ $# -gt 0 ] || set -- notebooks/*.py
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
mkdir -p notebooks/rendered
for script in "$@"; do
    name="$(basename "$script" .py)"
    say "$name"
    python -m jupytext --quiet --to ipynb --output "$place/$name.ipynb" "$script"
    (cd "$place" && python -m nbconvert --log-level=WARN --to notebook --execute \
        --ExecutePreprocessor.store_widget_state=False --inplace "$name.ipynb")
    cp "$place/$name.ipynb" notebooks/rendered/
done
