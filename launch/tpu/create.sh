#!/usr/bin/env bash
# Asks for a TPU by a queued resource, and waits until it is there. One that is there already is left as it is.
#
#   launch/tpu/create.sh NAME --type=v5litepod-16 [--spot] [--zone=ZONE] [--project=PROJECT] [--version=RUNTIME] [--dry-run]
#
# --spot is cheaper and may be taken away at any time: babysit.sh then asks again. Zone and project are gcloud's own
# where they are not given; the runtime version is the one for the type. Exit code 1: refused, failed, or taken away.

# shellcheck source=launch/tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ -n "$type" ] || fail "which kind? --type=v5litepod-16, for example"
case "$version,$type" in
,v5lite*) version=v2-alpha-tpuv5-lite ;;
,v5p*) version=v2-alpha-tpuv5 ;;
,v6e*) version=v2-alpha-tpuv6e ;;
,*) version=tpu-ubuntu2204-base ;;
esac
now=ABSENT
[ -n "$dry" ] || now="$(state)"
if [ "$now" = ABSENT ]; then
    queued create --node-id="$name" --accelerator-type="$type" --runtime-version="$version" "${options[@]}"
fi
while now="$(state)" && [ "$now" != ACTIVE ]; do
    case "$now" in
    FAILED | SUSPENDED | SUSPENDING | ABSENT) say "$name is $now: delete.sh $name, then create it again"; exit 1 ;;
    esac
    say "$(date '+%F %T') $name: $now"
    sleep "${PFGM_JAX_POLL:-30}"
done
say "$name is there"
