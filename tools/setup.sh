#!/bin/sh
# Creates a virtual environment with every dependency pinned and hashed and, if named, a project in editable form.
# Usage: setup.sh <python> <venv> <stamp> <requirements> [<project>]. Interrupted or failed, it removes a half-made
# environment.
set -eu
python=$1 venv=$2 stamp=$3 requirements=$4 project=${5:-}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    if command -v "$python" >/dev/null 2>&1; then found=$("$python" --version 2>&1 | head -n 1); else found="no $python"; fi
    echo "tenuto needs Python 3.11 or newer; found $found. Name another one: make PYTHON=python3.12 ..." >&2
    exit 1
fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    echo "tenuto needs Python's venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
fi

child=""
undo() {
    status=$?
    trap - EXIT INT TERM HUP
    [ -z "$child" ] || { kill "$child" 2>/dev/null; wait "$child" 2>/dev/null; } || true
    [ "$status" -eq 0 ] || [ -f "$venv/installed.txt" ] || rm -rf "$venv"
    exit "$status"
}
trap undo EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# A shell answers a signal only between foreground commands, but at once while it waits for a background one.
pip() {
    "$venv/bin/python" -m pip --quiet --disable-pip-version-check --no-input "$@" &
    child=$!
    wait "$child"
    child=""
}

rm -f "$stamp"
# A change of pyproject.toml alone renews the editable installation and keeps the packages.
if ! cmp -s "$requirements" "$venv/installed.txt"; then
    packages=$(grep -c '==' "$requirements")
    if [ "$packages" -lt 20 ]; then lasts="some seconds"; else lasts="one to three minutes"; fi
    # What a command prints goes to standard output, which a script may read.
    echo "setup: $("$python" --version), $packages pinned packages into $venv ($lasts, once)" >&2
    "$python" -m venv --clear "$venv"
    # The file is a complete lock, so there is nothing to resolve; and pip would not accept a pin without extras for a
    # requirement that has some.
    pip install --progress-bar off --no-deps --require-hashes --requirement "$requirements"
    cp "$requirements" "$venv/installed.txt"
fi
[ -z "$project" ] || pip install --no-deps --no-build-isolation --no-index --editable "$project"
touch "$stamp"
