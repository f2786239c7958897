#!/bin/sh
# Runs a program so that Ctrl-C ends it with status 130 at any moment, also while its interpreter starts, which would
# print a traceback. In the background a shell has a program ignore SIGINT; as soon as it asks for the signal itself, it
# gets the one that came.
set -u
interrupted=""
"$@" &
child=$!

# shellcheck disable=SC2329 # the traps call it
tell() {
    interrupted=1
    (while kill -s "$1" "$child" 2>/dev/null; do sleep 0.1; done) &
}
trap 'tell INT' INT
trap 'tell TERM' TERM HUP

wait "$child"
status=$?
# A trap ends `wait` before its time.
while [ -n "$interrupted" ] && kill -0 "$child" 2>/dev/null; do
    wait "$child"
    status=$?
done
exit "$status"
