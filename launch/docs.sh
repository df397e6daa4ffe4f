#!/usr/bin/env bash
# The documentation as a site in site/: environment, install, build; a broken link is an error. Arguments go to mkdocs build.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare "[docs]"
say "building"
NO_MKDOCS_2_WARNING=1 python -m mkdocs build "$@"
say "site/index.html"
