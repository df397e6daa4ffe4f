#!/usr/bin/env bash
# Gives a TPU back, and the request for it. What lies on its disks is lost; a bucket stays.
#
#   launch/tpu/delete.sh NAME [--zone=ZONE] [--project=PROJECT] [--dry-run]

# shellcheck source=launch/tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [ -z "$dry" ] && [ "$(state)" = ABSENT ]; then
    say "there is no $name"
    exit 0
fi
queued delete --force --quiet
