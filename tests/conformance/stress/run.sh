#!/bin/sh
# stress-ng --verify on four processors: every stressor of the classes of processor and memory, one after the other,
# four instances of each, for 30 minutes or so together.
#
#   sh tests/conformance/stress/run.sh WORK [SECONDS EACH]
#
# Not ipsec-mb, whose library calls its own empty pointers on a processor without AES-NI (docs/conformance.md), and
# uprobe, which the machine's kernel does not have.
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
"$smolvm" run -q "$file" -- stress-ng --verify --metrics-brief --class cpu,cpu-cache,memory \
  --exclude ipsec-mb,uprobe --sequential 4 --timeout "${2:-20}" --vm-bytes 64M --temp-path /tmp < /dev/null > "$work/log" 2>&1 || code=$?
tail -n 8 "$work/log"
exit "$code"
