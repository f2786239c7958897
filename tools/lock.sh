#!/bin/sh
# Resolves the extras of pyproject.toml and requirements/dev.in for every platform into one hashed file.
# The only script that needs `uv`; whoever merely develops installs the result with pip.
set -eu
if ! command -v uv >/dev/null 2>&1; then
    echo "make lock needs uv (pip install uv); everything else here does without it" >&2
    exit 1
fi
exec uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-header --no-annotate --all-extras \
    --output-file requirements/dev.txt pyproject.toml requirements/dev.in "$@"
