# shellcheck shell=bash disable=SC2034  # the scripts that source it use what it sets
# Sourced by the scripts beside it: their arguments, and gcloud, called or with --dry-run printed.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
# The script's own comment is its --help.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }
say() { printf '== %s\n' "$*" >&2; }
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 2; }
exec 3>&1 # what --dry-run prints goes here, also where a command's output is read
name="" type="" version="" bucket="" dry="" given=("$@") options=() where=() command=()
while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry=1 ;;
    --spot) options+=("$1") ;;
    --zone=* | --project=*) where+=("$1") ;;
    --type=*) type="${1#*=}" ;;
    --version=*) version="${1#*=}" ;;
    --bucket=*) bucket="${1#*=}"; bucket="${bucket#gs://}" ;;
    --) shift; command=("$@"); break ;;
    -*) fail "unknown argument '$1'; see --help" ;;
    *) [ -z "$name" ] || fail "'$name' or '$1'? one NAME at a time"; name="$1" ;;
    esac
    shift
done
[ -n "$name" ] || fail "which TPU? the first word is its NAME; --help shows the others"
run() { if [ -n "$dry" ]; then printf '%q ' "$@" >&3 && echo >&3; else "$@"; fi; }
queued() { run gcloud compute tpus queued-resources "$1" "$name" "${where[@]}" "${@:2}"; }
# On all workers: on_workers COMMAND. Its exit code is that of the first worker that fails, 255 where none could be reached.
on_workers() { run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1" < /dev/null; }
# ACTIVE, WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDED, FAILED, …; ABSENT where there is none.
state() {
    local said
    said="$(queued describe "--format=value(state.state)" 2>&1)" && { echo "${said:-ACTIVE}"; return; }
    case "$said" in *NOT_FOUND* | *"not found"*) echo ABSENT ;; *) say "$said"; echo UNKNOWN ;; esac
}
