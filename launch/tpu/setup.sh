#!/usr/bin/env bash
# Installs this checkout (its last commit) on every worker of a TPU, in ~/pfgm_jax; again, only what has changed.
#
#   launch/tpu/setup.sh NAME [--bucket=BUCKET] [--zone=ZONE] [--project=PROJECT] [--dry-run]
#
# --bucket mounts a Cloud Storage bucket at ~/bucket by gcsfuse, for runs that outlive the machine:
# --workdir=~/bucket/RUN. Only the first worker writes there.

# shellcheck source=launch/tpu/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

archive="$(mktemp -d)/pfgm_jax.tgz"
trap 'rm -rf "${archive%/*}"' EXIT
git -C "$root" diff --quiet HEAD || say "changes that are not committed stay at home"
run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$name:" "${where[@]}" --worker=all
# The images have Python 3.10: uv brings a newer one, once.
# shellcheck disable=SC2016  # the workers expand it
install='set -e
mkdir -p pfgm_jax && tar -xzf pfgm_jax.tgz -C pfgm_jax && cd pfgm_jax
python3 -m pip install --quiet --user uv && ~/.local/bin/uv python install --quiet 3.12
PFGM_JAX_PYTHON="$(~/.local/bin/uv python find 3.12)" bash -c "source launch/environment.sh; prepare \"[tpu]\""'
on_workers "$install"
[ -n "$bucket" ] || exit 0
on_workers "set -e
command -v gcsfuse > /dev/null || {
    . /etc/os-release
    key=/usr/share/keyrings/cloud.google.asc
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee \$key > /dev/null
    echo \"deb [signed-by=\$key] https://packages.cloud.google.com/apt gcsfuse-\$VERSION_CODENAME main\" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
    sudo apt-get update -qq && sudo apt-get install -y -qq gcsfuse
}
mkdir -p ~/bucket && { mountpoint -q ~/bucket || gcsfuse --implicit-dirs $(printf %q "$bucket") ~/bucket; }"
