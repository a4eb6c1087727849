# Sourced by the other scripts: makes their Python environment, and does nothing if it is up to date.
#
#   tessera_env VENV_DIR EXTRAS    e.g. tessera_env .venv test; EXTRAS may be empty

tessera_checkout="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"

# A caller's Python settings must not leak into the environment.
unset PYTHONPATH PYTHONHOME
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1

case "${TESSERA_VENV:-}" in
'' | /*) ;;
*) TESSERA_VENV="$PWD/$TESSERA_VENV" ;; # the scripts change the directory
esac

tessera_say() { printf '%s\n' "$*" >&2; }

# Whether a command is a Python that the package runs on and that can make environments.
_tessera_fits() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}

_tessera_python() {
    local name
    for name in ${TESSERA_PYTHON:+"$TESSERA_PYTHON"} python3 python3.13 python3.12 python3.11 python; do
        if _tessera_fits "$name"; then
            printf '%s\n' "$name"
            return
        fi
        if [ "$name" = "${TESSERA_PYTHON:-}" ]; then
            tessera_say "TESSERA_PYTHON=$name is no Python 3.11, 3.12 or 3.13 with the modules venv and ensurepip"
            return 1
        fi
    done
    tessera_say "no Python 3.11, 3.12 or 3.13 with the modules venv and ensurepip on the PATH. Install one (Debian, Ubuntu:"
    tessera_say "apt install python3 python3-venv; clusters: module load python), or name it with TESSERA_PYTHON=/path/to/python"
    return 1
}

# What an environment was made from: it is stale as soon as one of these changes.
_tessera_stamp() {
    "$1" - "$tessera_checkout" "$2" <<'PYTHON'
import hashlib, os, pathlib, shlex, shutil, sys
checkout, extras = sys.argv[1:]
root = pathlib.Path(checkout)
native = sorted(root.glob("src/tessera/xpcs/native/*.[ch]"))
parts = [path.read_bytes() for path in (root / "pyproject.toml", root / "constraints.txt", root / "hatch_build.py", *native)]
compiler = shlex.split(os.environ.get("CC") or "cc")[0]
parts.append(b"compiler" if shutil.which(compiler) else b"none")  # one that comes later builds what was left out
print(hashlib.sha256(b"\0".join([*parts, checkout.encode(), extras.encode()])).hexdigest())
PYTHON
}

# Say that the sums of the XPCS fit are not compiled, as pip does not.
_tessera_compiled() {
    if [ -e "$tessera_checkout/src/tessera/xpcs/native/kernels.so" ]; then return 0; fi
    tessera_say "no compiled sums: XPCS fits run in NumPy, several times slower. For them: apt install gcc (clusters: module load gcc), and once more"
}

# Install, with one changing line on a terminal; everything pip says is kept for when it fails.
_tessera_install() {
    local venv="$1" target="$2" line status
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null || return 1
    (
        set -o pipefail
        "$venv/bin/python" -m pip install --no-input -c "$tessera_checkout/constraints.txt" -e "$target" 2>&1 |
            tee "$venv/install.log" |
            while IFS= read -r line; do
                if [ -t 2 ]; then printf '\r\033[K  %.76s' "$line" >&2; fi
            done
    )
    status=$?
    if [ -t 2 ]; then printf '\r\033[K' >&2; fi
    return "$status"
}

tessera_env() {
    local venv="$1" extras="$2" python stamp wanted target="$tessera_checkout"
    if [ -n "$extras" ]; then target="$target[$extras]"; fi
    if ! _tessera_fits "$venv/bin/python"; then
        if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
            tessera_say "$venv is no virtual environment and not empty; give another directory as TESSERA_VENV"
            return 1
        fi
        python="$(_tessera_python)" || return 1
        tessera_say "making a Python environment with $("$python" --version): $venv"
        "$python" -m venv --clear "$venv" || return 1
    fi
    stamp="$venv/.tessera-${extras:-base}"
    wanted="$(_tessera_stamp "$venv/bin/python" "$extras")" || return 1
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        _tessera_compiled
        return 0
    fi
    tessera_say "installing Tessera and what it needs into $venv (the first time takes a few minutes)"
    if ! _tessera_install "$venv" "$target"; then
        tail -n 15 "$venv/install.log" >&2 || true
        tessera_say "the installation failed; all of pip's messages: $venv/install.log"
        return 1
    fi
    printf '%s\n' "$wanted" >"$stamp"
    _tessera_compiled
}
