#!/bin/sh
# Says in one line what the embedded stack lacks on this machine: Java 17 or newer, and Maven. A person's own
# Kafka and DynamoDB take the place of the embedded ones; the tests and the demo still start theirs.
# With `plan <venv>` it also says what is there, and what will be fetched before anything starts.
set -u
missing=""

version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9][0-9]*\).*/\1/p' | head -n 1)
if [ -z "$version" ]; then
    missing="Java 17 or newer (not found)"
elif [ "$version" -lt 17 ]; then
    missing="Java 17 or newer (found $version)"
fi
if [ -z "$missing" ] && ! command -v javac >/dev/null 2>&1; then
    missing="a JDK, not only a JRE (javac not found)"
fi
if ! command -v mvn >/dev/null 2>&1; then
    missing="${missing:+$missing and }Maven (not found)"
fi

if [ -n "$missing" ]; then
    echo "missing: $missing. Debian and Ubuntu: apt-get install openjdk-17-jdk-headless maven; macOS: brew install openjdk@17 maven" >&2
    exit 1
fi

if [ "${1:-}" = plan ] && [ ! -f "$2/.complete" ]; then
    echo "Java $version ✓  Maven ✓  fetching once: Python packages into $2, then Kafka and DynamoDB Local (about 100 MB)"
fi
