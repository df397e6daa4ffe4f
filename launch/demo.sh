#!/usr/bin/env bash
# From a fresh machine to samples: environment, install, training of PFGM++ (D = 128) on handwritten digits, sampling with
# RK45 and Heun, and a score. Five to ten minutes on two CPU cores. A second run trains anew only if runs/digits is removed.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

run="${PFGM_JAX_DEMO_RUN:-runs/digits}"
prepare ""

say "training PFGM++ (D = 128) on digits into $run"
python -m pfgm_jax.main --config=configs/digits.py --workdir="$run"

for solver in rk45 heun; do
    say "sampling with $solver"
    python -m pfgm_jax.main --mode=sample --workdir="$run" --config.sample.solver="$solver" --config.sample.n=100
done

say "score, relative to held-out digits; every row but the first two is a control that must fail"
python -m pfgm_jax.main --mode=evaluate --workdir="$run"

say "pictures"
shopt -s nullglob
printf '  %s\n' "$run"/samples/*-n=100*.{png,gif,webp} "$run"/curves.png
