#!/bin/sh
# Programs' own tests, natively and in a machine: what passes in a chroot of a root must pass in the machine made of it.
#
#   sh tests/conformance/programs.sh SUITE WORK [SOURCE]
#
# SUITE is a directory beside this script: a Smolfile whose root has /suite/list (prints the names of the tests, one a
# line) and /suite/one NAME (runs one; exit code 0: passed, 4: skipped). Where there is SUITE/prepare, it is given a
# copy of the directory and SOURCE, the tests' own directory outside of this tree, and builds what the copy lacks.
# Where there is SUITE/several, it is a script for the machine's sh that runs all tests that it is given at once (exit
# code 0: all passed and none was skipped).
# WORK keeps the machine file, the root, the logs and two tables, native.tsv and guest$HOW.tsv: name, result, seconds. What
# stands in them is not run again, so that the script can be ended at any time and goes on when it is started anew. Where
# there is a file WORK/stop it ends after the test that runs.
#
# Needs root (chroot, mount), a built smolvm (SMOLVM=PATH, else the one on PATH).
# HOW=--lockstep  runs each test translated and interpreted at once and compares all registers (the default)
# HOW=            runs it translated only
# LIMIT=SECONDS   for one test in the machine (3600); NATIVELY=SECONDS for one on the host (300)
# ONLY=REGEX      names of tests to run (grep -E)
# ALL=1           in the machine also those that do not pass natively
# TOGETHER=N      in the machine up to N at once, where there is SUITE/several: what starts them is run, and compared, once.
#                 If they do not all pass, each is run alone.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
suite=${1:?which suite? one of: $(cd "$here" && echo */Smolfile | sed 's,/Smolfile,,g')}
work=${2:?which directory to work in?}
smolvm=${SMOLVM:-smolvm}
how=${HOW---lockstep}
table_guest=$work/guest$how.tsv
export SMOLVM_HOME="${SMOLVM_HOME:-$work/home}" SMOLVM_ENGINE=soft
mkdir -p "$work/logs"
work=$(cd "$work" && pwd)
file=$work/$suite.smolmachine
root=$work/root

if [ ! -f "$file" ]; then
  rm -rf "$work/definition"
  cp -R "$here/$suite" "$work/definition"
  if [ -f "$here/$suite/prepare" ]; then
    sh "$here/$suite/prepare" "$work/definition" "${3:?where is the source of these tests?}"
  fi
  "$smolvm" build -q -f "$work/definition/Smolfile" -o "$file"
fi

# The same root for the host, written by the machine itself.
if [ ! -f "$work/root.ready" ]; then
  rm -rf "$root"
  mkdir "$root"
  "$smolvm" run -q "$file" -- tar -C / -c --one-file-system --exclude=./proc --exclude=./sys --exclude=./dev . |
    tar -C "$root" -x --numeric-owner
  mkdir -p "$root/proc" "$root/sys" "$root/dev"
  touch "$work/root.ready"
fi

# In a mount, network and process namespace of its own, which ends with it. The processor is the machine's
# (GLIBC_TUNABLES: glibc's manual, "Hardware Capability Tunables"): with FMA mathematical functions round otherwise.
natively() {
  timeout -k 10 "${NATIVELY:-300}" unshare --mount --net --pid --fork --kill-child sh -c '
    mount --make-rprivate / && ip link set lo up 2>/dev/null
    at=$1; shift
    mount -t proc none "$at/proc" && mount --bind /dev "$at/dev" && mount -t tmpfs none "$at/dev/shm"
    mount -t tmpfs -o mode=1777 none "$at/tmp"
    exec chroot "$at" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
      GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F "$@"' sh "$root" "$@" < /dev/null
}

# Records how a command ended: result and seconds behind the name.
record() { # TABLE NAME LOG COMMAND...
  table=$1 name=$2 log=$3
  shift 3
  begun=$(date +%s%N) code=0
  "$@" > "$log" 2>&1 || code=$?
  case $code in
    0) result=passed ;;
    4) result=skipped ;;
    124 | 137) result=timeout ;;
    125) result=smolvm ;; # what the log says: a difference, or no machine
    *) result=failed ;;
  esac
  printf '%s\t%s\t%s\n' "$name" "$result" "$((($(date +%s%N) - begun) / 1000000))e-3" >> "$table"
}

done_in() { [ -f "$1" ] && cut -f1 "$1" | grep -qxF -e "$2"; }

[ -s "$work/list" ] || natively /suite/list > "$work/list"
grep -E -e "${ONLY:-.}" "$work/list" | while read -r name; do
  done_in "$work/native.tsv" "$name" || record "$work/native.tsv" "$name" "$work/logs/native-$name" \
    natively /suite/one "$name"
done

guest() {
  # shellcheck disable=SC2086 # an empty HOW is no word
  timeout -k 10 "${LIMIT:-3600}" "$smolvm" run -q $how "$file" -- /suite/one "$1" < /dev/null
}

if [ "${TOGETHER:-1}" -gt 1 ] && [ -f "$here/$suite/several" ]; then
  several=$(cat "$here/$suite/several")
  together=$TOGETHER
else
  several= together=1
fi

# Runs some at once; where they do not all pass, that is left for each alone, but not what smolvm says of itself.
at_once() { # NAME...
  [ $# -gt 1 ] || return 0
  begun=$(date +%s%N) code=0
  # shellcheck disable=SC2086
  timeout -k 10 "${LIMIT:-3600}" "$smolvm" run -q $how "$file" -- sh -c "$several" sh "$@" < /dev/null \
    > "$work/logs/guest$how-at-once-$1" 2>&1 || code=$?
  case $code in
    0) result=passed ;;
    125) result=smolvm ;;
    *) return 0 ;;
  esac
  each=$((($(date +%s%N) - begun) / 1000000 / $#))
  for name; do printf '%s\t%s\t%s\n' "$name" "$result" "${each}e-3" >> "$table_guest"; done
}

# The shortest first.
passed_natively() {
  awk -F'\t' -v all="${ALL:-}" 'all || $2 == "passed" { print $3 "\t" $1 }' "$work/native.tsv" | sort -g | cut -f2 |
    grep -E -e "${ONLY:-.}"
}

if [ "$together" -gt 1 ]; then
  passed_natively | while read -r name; do
    done_in "$table_guest" "$name" || echo "$name"
  done | xargs -n "$together" echo | while read -r names; do
    [ ! -e "$work/stop" ] || break
    # shellcheck disable=SC2086 # names of tests have no spaces
    at_once $names
  done
fi
passed_natively | while read -r name; do
  [ ! -e "$work/stop" ] || break
  done_in "$table_guest" "$name" || record "$table_guest" "$name" "$work/logs/guest$how-$name" guest "$name"
done

echo "natively:"
cut -f2 "$work/native.tsv" | sort | uniq -c
echo "of those that passed, in the machine (${how:-translated}):"
cut -f2 "$table_guest" | sort | uniq -c
awk -F'\t' '$2 != "passed" && $2 != "skipped" { print "  " $1 ": " $2 }' "$table_guest"
echo "$work"
! awk -F'\t' '{ print $2 }' "$table_guest" | grep -qvE '^(passed|skipped)$'
