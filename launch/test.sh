#!/usr/bin/env bash
# From a fresh machine to tested: environment, install, style, types, tests. Arguments go to pytest.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare "[test]"

say "style"
ruff check .
ruff format --check .

say "types"
pyrefly check

say "tests"
# A worker a core; the tests of a file share what they train.
python -m pytest -q -m "not slow" -n auto --dist loadfile --durations=10 "$@"
