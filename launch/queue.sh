#!/usr/bin/env bash
# Trains a list of runs one after the other, at the lowest priority, while the machine has nothing better to do.
#
#   launch/queue.sh start LIST    in the background; a list that was stopped goes on where it was
#   launch/queue.sh pause         holds it still, such as while something is timed      launch/queue.sh resume
#   launch/queue.sh status        what each run of the list has reached                 launch/queue.sh stop
#
# A line of LIST is "WORKDIR IMAGES ARGUMENTS": train the run in WORKDIR to IMAGES images, ARGUMENTS being those of
# pfgm_jax.main. Two runs that are to be compared take turns by standing there several times:
#
#   runs/pfgmpp  250000 --config=configs/medmnist.py:dataset=bloodmnist,cpu,process=pfgmpp
#   runs/ddpm    250000 --config=configs/medmnist.py:dataset=bloodmnist,cpu,process=ddpm
#   runs/pfgmpp  500000 --config=configs/medmnist.py:dataset=bloodmnist,cpu,process=pfgmpp
#   runs/ddpm    500000 --config=configs/medmnist.py:dataset=bloodmnist,cpu,process=ddpm
#
# A relative WORKDIR is one of the checkout's. Its state and log are in $PFGM_JAX_QUEUE (~/.cache/pfgm_jax/queue), each run's own log in WORKDIR/queue.log.
set -euo pipefail
state="${PFGM_JAX_QUEUE:-$HOME/.cache/pfgm_jax/queue}"

say() { printf '%s\n' "$*" >&2; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }
# The queue's process, unless its number is another process's by now.
group() { local pid; pid="$(cat "$state/pid" 2>/dev/null)" && ps -o args= -p "$pid" | grep -q 'queue.sh train_all' && echo "$pid"; }
# How the queue's process is: "" for gone, T held still, S waiting for its run.
how() { local pid; pid="$(group)" && ps -o stat= -p "$pid" | cut -c1 | tr -d Z; }
alive() { [ -n "$(how)" ]; }
to_group() { alive || { say "no queue is running"; exit 2; }; kill -s "$1" -- "-$(group)"; }
# Images that a run has trained, by its metrics.
reached() { tail -n 1 "$1/metrics.jsonl" 2>/dev/null | sed -n 's/.*"images": *\([0-9]*\).*/\1/p' || true; }
lines() { sed 's/#.*//' "$1" | grep -v '^[[:space:]]*$'; }

train_all() {
    local list="$1" workdir images arguments code child=0
    # Linux shares the processor among sessions first, and looks at priorities within each: the session's counts too.
    { echo 19 > /proc/self/autogroup; } 2>/dev/null || true
    trap 'kill -TERM "$child" 2>/dev/null; wait "$child"; exit 143' TERM
    while read -r workdir images arguments; do
        workdir="${workdir/#\~/$HOME}"
        local seen; seen="$(reached "$workdir")"
        [ "${seen:-0}" -lt "$images" ] || continue
        mkdir -p "$workdir"
        say "$(date '+%F %T') $workdir: ${seen:-0} of $images images"
        # shellcheck disable=SC2086  # arguments are words
        python -m pfgm_jax.main --workdir="$workdir" $arguments --config.train.images="$images" \
            >> "$workdir/queue.log" 2>&1 < /dev/null &
        child=$!
        wait "$child" || { code=$?; say "$(date '+%F %T') $workdir: exit code $code; $workdir/queue.log says why"; }
    done < <(lines "$list")
    say "$(date '+%F %T') the list is done"
}

case "${1:-}" in
start)
    { [ -f "${2:-}" ] && [ -r "$2" ]; } || { say "queue.sh start LIST: which list of runs?"; exit 2; }
    ! alive || { say "a queue is running already (process $(group)); stop it first"; exit 2; }
    lines "$2" > /dev/null || { say "$2 names no run; write WORKDIR IMAGES ARGUMENTS"; exit 2; }
    bad="$(lines "$2" | awk 'NF < 3 || $2 !~ /^[0-9]+$/ { print; exit }')"
    [ -z "$bad" ] || { say "no line of a queue: '$bad'; write WORKDIR IMAGES ARGUMENTS"; exit 2; }
    # shellcheck source=launch/environment.sh
    source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
    list="$(cd "$OLDPWD" && realpath "$2")"
    prepare ""
    mkdir -p "$state"
    cp "$list" "$state/list"
    setsid nohup nice -n 19 bash "$root/launch/queue.sh" train_all "$state/list" >> "$state/log" 2>&1 < /dev/null &
    echo $! > "$state/pid"
    say "the queue trains in the background (process $!); its log is $state/log"
    ;;
train_all) train_all "$2" ;;
pause) to_group STOP && say "paused" ;;
resume) to_group CONT && say "goes on" ;;
stop) to_group TERM && { kill -s CONT -- "-$(cat "$state/pid")" 2>/dev/null || true; } && while alive; do sleep 0.2; done && say "stopped; start it with the same list to go on" ;;
status)
    [ -r "$state/list" ] || { say "there is no queue yet"; exit 2; }
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    case "$(how)" in "") echo "not running" ;; T) echo "paused" ;; *) echo "running" ;; esac
    lines "$state/list" | while read -r workdir images _; do printf '%12s of %12s  %s\n' "$(reached "${workdir/#\~/$HOME}")" "$images" "$workdir"; done
    ;;
-h | --help) usage ;;
*) usage >&2; exit 2 ;;
esac
