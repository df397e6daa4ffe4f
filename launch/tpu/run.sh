#!/usr/bin/env bash
# Runs a command of pfgm_jax on all workers of a TPU, the same as at home, as one job over all their chips.
#
#   launch/tpu/run.sh NAME [--zone=ZONE] [--project=PROJECT] [--dry-run] -- --config=configs/cifar10.py --workdir=~/bucket/RUN
#
# What the workers say, each line behind its host's name, is shown and kept in logs/NAME.log ($PFGM_JAX_LOGS). What an earlier call left
# running is stopped first, and saves. Exit codes are those of the command, 255 where a worker cannot be reached.

# shellcheck source=launch/tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ ${#command[@]} -gt 0 ] || fail "what shall run? write -- and the arguments of pfgm_jax.main behind it"
arguments="$(printf '%q ' "${command[@]}")" # a ~ is left to pfgm_jax.main, which means the worker's home by it
# An earlier call may have lost its connection and left the run: only one can have the chips.
# shellcheck disable=SC2016  # the workers expand it
before='pkill -TERM -F run.pid -f pfgm_jax.main; for i in $(seq 90); do pgrep -F run.pid -f pfgm_jax.main || break; sleep 1; done'
say "$name: python -m pfgm_jax.main $arguments"
logs="${PFGM_JAX_LOGS:-$root/logs}"
if [ -n "$dry" ]; then log=/dev/null; else mkdir -p "$logs" && log="$logs/$name.log"; fi
on_workers "set -o pipefail; cd pfgm_jax && { $before; } > /dev/null 2>&1
{ PFGM_JAX_PROCESS=auto .venv/bin/python -m pfgm_jax.main $arguments & echo \$! > run.pid; wait \$!; } 2>&1 |
    stdbuf -oL tr '\\r' '\\n' | sed -u \"s/^/\$(hostname): /\"" 2>&1 | tee -a "$log"
