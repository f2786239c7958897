#!/bin/sh
# Makes the environment of the LocalStack that `make test-localstack` starts by itself, which runs on Python 3.13 alone.
# Usage: setup_localstack.sh <venv> <stamp> <requirements>. Does nothing when the environment is there or an endpoint is
# given. Without a Python 3.13 it only says so, and the tests skip; where CI is set, that is an error.
set -eu
venv=$1 stamp=$2 requirements=$3

[ -z "${LOCALSTACK_HOST:-}${AWS_ENDPOINT_URL:-}" ] || exit 0
sh tools/require_java.sh
if [ -f "$stamp" ] && cmp -s "$requirements" "$venv/installed.txt"; then exit 0; fi

# A shim of pyenv is on PATH for every version it knows, and fails for those that are not chosen: hence the trial.
for python in python3.13 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13*/bin/python3.13; do
    if "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null; then
        exec sh tools/setup.sh "$python" "$venv" "$stamp" "$requirements"
    fi
done

echo "LocalStack needs Python 3.13; there is no python3.13 on PATH, and none of pyenv's" >&2
[ -z "${CI:-}" ]
