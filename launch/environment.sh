# Sourced by the other scripts: makes .venv from constraints.txt and leaves its Python in $PYTHON.
# usage: . launch/environment.sh EXTRA[,EXTRA]
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in "${JDEPTH_PYTHON:-}" python3 python3.11 python3.12 python3.13 python3.14 python; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or later with venv found; install one, or name it in JDEPTH_PYTHON" >&2
    return 2
}

for extra in ${1//,/ }; do
    case $extra in
    cuda12 | cuda13 | tpu | test | reference | notebook) ;;
    *) echo "error: JDEPTH_EXTRAS: no extra $extra; there are cuda12, cuda13, tpu, test, reference and notebook" >&2 && exit 2 ;;
    esac
done

# Jobs that start together share the folder: one installs, the others wait. (The lock goes with this shell.)
if command -v flock >/dev/null && { exec 9>.venv.lock; } 2>/dev/null; then
    flock --nonblock 9 || { echo "waiting for another installation in $PWD/.venv" && flock 9; } || true
fi
if [ ! -x .venv/bin/python ]; then
    python=$(find_python) || exit 2
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv || { rm -rf .venv; echo "error: cannot make .venv" >&2; exit 2; }
fi
PYTHON=.venv/bin/python

# What was installed for, so that a second start installs nothing.
wanted="$1 $(cat pyproject.toml constraints.txt | cksum)"
stamp=".venv/installed-${1//,/-}"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing jdepth (about 1.3 GB on disk)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$1]" || exit 2
    echo "$wanted" >"$stamp"
fi
exec 9>&-
