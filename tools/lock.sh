#!/bin/sh
# Resolves what each environment installs, for every platform, into hashed files under requirements/. The only script
# that needs `uv`; whoever merely develops installs the results with pip. Further arguments go to every resolution.
set -eu
if ! command -v uv >/dev/null 2>&1; then
    echo "make lock needs uv (pip install uv); everything else here does without it" >&2
    exit 1
fi

resolve() {
    output=$1
    shift
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-header --no-annotate --output-file "requirements/$output" "$@"
}

resolve dev.txt pyproject.toml requirements/dev.in --all-extras "$@"
# What goes into an artefact is what was tested, so its versions are those of dev.txt.
resolve function.txt pyproject.toml --constraint requirements/dev.txt "$@"
resolve function_kms.txt pyproject.toml --extra kms --constraint requirements/dev.txt "$@"
resolve control.txt pyproject.toml --extra control --extra kms --extra otel --constraint requirements/dev.txt "$@"
# The wheel that a person builds is the one that was tested.
resolve wheel.txt requirements/wheel.in --constraint requirements/dev.txt "$@"
resolve aws.txt requirements/aws.in "$@"
resolve restate.txt requirements/restate.in "$@"
resolve audit.txt requirements/audit.in "$@"
