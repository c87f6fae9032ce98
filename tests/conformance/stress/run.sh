#!/bin/sh
# stress-ng --verify on four processors: every stressor of the classes of processor and memory, one after the other,
# four instances of each, for 30 minutes or so together.
#
#   sh tests/conformance/stress/run.sh WORK [SECONDS EACH]
#
# One of them needs a tmpfs with room, which a machine has no need of otherwise: it is mounted first.
#
# WORK keeps the machine file and the log. SMOLVM=PATH, else the smolvm on PATH. Fails unless no stressor failed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=${1:?which directory to work in?}
smolvm=${SMOLVM:-smolvm}
export SMOLVM_HOME="${SMOLVM_HOME:-$work/home}" SMOLVM_ENGINE=soft
mkdir -p "$work"
file=$work/stress.smolmachine
[ -f "$file" ] || "$smolvm" build -q -f "$here/Smolfile" -o "$file"
code=0
# shellcheck disable=SC2016 # $1 is the machine's
"$smolvm" run -q "$file" -- sh -c 'mount -t tmpfs none /mnt && exec stress-ng --verify --metrics-brief \
  --class cpu,cpu-cache,memory --sequential 4 --timeout "$1" --vm-bytes 64M --temp-path /tmp' sh "${2:-18}" < /dev/null > "$work/log" 2>&1 || code=$?
tail -n 8 "$work/log"
exit "$code"
