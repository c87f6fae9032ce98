#!/bin/sh
# Runs a machine's test suite many times, each time from the same frozen bytes:
#
#   run.sh FILE [RUNS [AT_ONCE [OUT]]]        100 runs, 2 at once, results in ./results
#
# In the machine, `sh /srv/ci/suite JUNIT` runs the tests and `sh /srv/ci/fingerprint` says what state it is in. OUT
# gets NUMBER.xml (JUnit), NUMBER.log, NUMBER.code and NUMBER.start. Exit code: 0 when every run passed, 1 when one
# did not, 2 when two runs started differently or something is left behind.
set -eu
smolvm=${SMOLVM:-smolvm}

if [ "${1:-}" = --one ]; then
    file=$2 out=$3 number=$4 name=$5-$4
    trap '"$smolvm" rm -f "$name" >/dev/null 2>&1' EXIT
    trap 'exit 130' INT TERM HUP
    "$smolvm" run -q -d --name "$name" "$file" >/dev/null
    # The machine file by its digest, then what the guest sees.
    { "$smolvm" inspect "$name" | grep '^file:'; "$smolvm" exec "$name" sh /srv/ci/fingerprint; } >"$out/$number.start"
    code=0
    "$smolvm" exec ${CI_FAIL:+-e CI_FAIL="$CI_FAIL"} "$name" sh /srv/ci/suite /tmp/junit.xml \
        >"$out/$number.log" 2>&1 || code=$?
    "$smolvm" cp "$name:/tmp/junit.xml" "$out/$number.xml"
    echo "$code" >"$out/$number.code"
    exit 0
fi

file=${1:?usage: run.sh FILE [RUNS [AT_ONCE [OUT]]]}
runs=${2:-100} at_once=${3:-2} out=${4:-results}
group=ci-$$
mkdir -p "$out"
rm -f "$out/starts" "$out"/*.xml "$out"/*.log "$out"/*.code "$out"/*.start
seq 1 "$runs" | xargs -P "$at_once" -I{} sh "$0" --one "$file" "$out" {} "$group"

passed=$(cat "$out"/*.code | grep -cx 0 || true)
# What each run was before its first test, as one digest: how many runs had which.
for start in "$out"/*.start; do sha256sum <"$start" | cut -d ' ' -f 1; done | sort | uniq -c >"$out/starts"
starts=$(wc -l <"$out/starts")
left=$("$smolvm" ps -a -q | grep -c "^$group-" || true)
while read -r count digest; do echo "$count run(s) started as $digest"; done <"$out/starts"
echo "$passed of $runs passed, $starts different start(s), $left machine(s) left"
[ "$starts" -eq 1 ] && [ "$left" -eq 0 ] || exit 2
[ "$passed" -eq "$runs" ] || exit 1
