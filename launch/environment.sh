# shellcheck shell=bash
# Sourced by demo.sh and test.sh: makes or reuses the environment in .venv and puts its python first.
# PFGM_JAX_PYTHON chooses the interpreter, PFGM_JAX_VENV the folder.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root" || exit

say() { printf '\n== %s\n' "$*"; }

find_python() {
    local candidate
    for candidate in ${PFGM_JAX_PYTHON:-} python3.12 python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "pfgm_jax needs Python 3.11 or newer; set PFGM_JAX_PYTHON to one" >&2
    return 2
}

# prepare EXTRAS: an environment with this package and its extras ("" or "[test]"), made once for each setup.cfg.
prepare() {
    local extras="$1" venv="${PFGM_JAX_VENV:-$root/.venv}" python stamp
    python="$(find_python)" || exit 2
    stamp="$(cat setup.cfg pyproject.toml | cksum | tr ' ' '-')$extras"
    if [ "$(cat "$venv/stamp$extras" 2>/dev/null)" = "$stamp" ]; then
        say "environment: $venv, made before"
    else
        say "environment: making $venv with $("$python" --version) and installing pfgm_jax$extras"
        [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --editable ".$extras" ||
            { echo "installing failed; is a package index reachable?" >&2; exit 1; }
        # Its table of URLs and checksums is all that is used of medmnist; its dependencies are 3 GB of GPU builds.
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --no-deps medmnist ||
            echo "medmnist could not be installed; MedMNIST files can still be given by --config.data.dir" >&2
        echo "$stamp" > "$venv/stamp$extras"
    fi
    PATH="$venv/bin:$PATH"
}
