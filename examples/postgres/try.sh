#!/bin/sh
# Goes through the scenario with the host's psql and prints what it took. Wants `smolvm` and `psql` in PATH.
#
#     sh examples/postgres/try.sh [postgres.smolmachine]
set -e
file=${1:-postgres.smolmachine}
[ -f "$file" ] || smolvm build -f "$(dirname "$0")/Smolfile" -o "$file"
case $file in */*) ;; *) file=./$file ;; esac
ask() { psql -qAt -h 127.0.0.1 -p "$1" -U app -d shop -c "$2"; }
count() { ask "$1" 'select count(*) from orders'; }
answers() { until count "$1" >/dev/null 2>&1; do sleep 0.02; done; }
now() { date +%s%N; }
ms() { echo $((($(now) - $1) / 1000000)); }
fail() { echo "$1" >&2; exit 1; }
names="pg-warm pg-vol $(seq -f pg-%g 1 10)"
# shellcheck disable=SC2086 # names are words
clean() { smolvm rm -f $names >/dev/null 2>&1 || true; smolvm volume rm try-pgdata >/dev/null 2>&1 || true; }
trap clean EXIT
clean

begun=$(now)
smolvm run -q -d --name pg-warm -p 5432:5432 "$file" >/dev/null
rows=$(count 5432)
echo "resumed: psql counted $rows orders $(ms "$begun") ms after the command"

begun=$(now)
for n in $(seq 1 10); do
    smolvm run -q -d --name "pg-$n" -p "$((5440 + n)):5432" "$file" >/dev/null &
done
wait
for n in $(seq 1 10); do
    ask "$((5440 + n))" "delete from orders where id <= $n" &
done
wait
for n in $(seq 1 10); do
    [ "$(count "$((5440 + n))")" = "$((rows - n))" ] || fail "clone $n has another's data"
done
[ "$(count 5432)" = "$rows" ] || fail "the first has another's data"
echo "ten clones: each answered with its own data after $(ms "$begun") ms"
smolvm rm -f $(seq -f pg-%g 1 10) >/dev/null

begun=$(now)
smolvm run -q -d --cold --name pg-vol -v try-pgdata:/var/lib/postgresql -p 5433:5432 "$file" >/dev/null
answers 5433
echo "on a new volume: first answer $(ms "$begun") ms after the command (it boots, and fills the volume)"
ask 5433 "insert into customers values (20001, 'kept', 'Oslo')"
smolvm rm -f pg-vol >/dev/null
begun=$(now)
smolvm run -q -d --cold --name pg-vol -v try-pgdata:/var/lib/postgresql -p 5433:5432 "$file" >/dev/null
answers 5433
[ "$(ask 5433 'select name from customers where id = 20001')" = kept ] || fail "the row is gone"
echo "another machine on the same volume: the row is there, first answer after $(ms "$begun") ms"
