#!/usr/bin/env bash
# Trains on a TPU to the end, whatever happens to it: asks for the TPU, sets it up, runs the command, and when the TPU is
# taken away or a worker is lost does so again, from the last checkpoint on.
#
#   launch/tpu/babysit.sh NAME --type=v5litepod-16 --bucket=BUCKET [--spot] [--zone=ZONE] [--project=PROJECT] [--version=RUNTIME] \
#       [--dry-run] -- --config=configs/cifar10.py --workdir=~/bucket/RUN
#
# It ends with the run (0), at a mistake in the command (2), or after five failures in a row of a TPU that is there (1).
# The TPU stays until delete.sh. $PFGM_JAX_POLL is the time between two looks, in seconds (30).

# shellcheck source=launch/tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

here="$(dirname "${BASH_SOURCE[0]}")"
[ -n "$type" ] || fail "which kind? --type=v5litepod-16, for example"
[ ${#command[@]} -gt 0 ] || fail "what shall run? write -- and the arguments of pfgm_jax.main behind it"
failures=0
while [ "$failures" -lt 5 ]; do
    case "$([ -n "$dry" ] || state)" in
    FAILED | SUSPENDED | SUSPENDING) say "$name was taken away: asking again"; bash "$here/delete.sh" "$name" "${where[@]}" ;;
    esac
    code=0
    bash "$here/create.sh" "${given[@]}" && bash "$here/setup.sh" "${given[@]}" && bash "$here/run.sh" "${given[@]}" || code=$?
    [ "$code" != 0 ] || exit 0
    [ "$code" != 2 ] || fail "the command cannot work as it is; see above"
    # A TPU that is gone is no failure of the run.
    if [ "$(state)" = ACTIVE ]; then failures=$((failures + 1)); else failures=0; fi
    say "$(date '+%F %T') exit code $code; trying again"
    sleep "${PFGM_JAX_POLL:-30}"
done
say "five failures in a row, and the TPU is there: see ${PFGM_JAX_LOGS:-$root/logs}/$name.log"
exit 1
