#!/bin/sh
# Goes through the scenario with the host's psql and prints what it took. Wants `smolvm` and `psql` in PATH.
#
#     sh examples/postgres/try.sh [postgres.smolmachine]
set -e
file=${1:-postgres.smolmachine}
[ -f "$file" ] || smolvm build -f "$(dirname "$0")/Smolfile" -o "$file"
count() { psql -qAt -h 127.0.0.1 -p "$1" -U app -d shop -c 'select count(*) from orders'; }
now() { date +%s%N; }
ms() { echo $((($(now) - $1) / 1000000)); }
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
    psql -qAt -h 127.0.0.1 -p "$((5440 + n))" -U app -d shop -c "delete from orders where id <= $n" &
done
wait
for n in $(seq 1 10); do
    [ "$(count "$((5440 + n))")" = "$((rows - n))" ] || { echo "clone $n has another's data"; exit 1; }
done
echo "ten clones: each answered with its own data after $(ms "$begun") ms"

begun=$(now)
smolvm run -q -d --cold --name pg-vol -v try-pgdata:/var/lib/postgresql -p 5433:5432 "$file" >/dev/null
until count 5433 >/dev/null 2>&1; do :; done
echo "on a new volume: first answer $(ms "$begun") ms after the command (it boots, and fills the volume)"
psql -qAt -h 127.0.0.1 -p 5433 -U app -d shop -c "insert into customers values (20001, 'kept', 'Oslo')"
smolvm rm -f pg-vol >/dev/null
begun=$(now)
smolvm run -q -d --cold --name pg-vol -v try-pgdata:/var/lib/postgresql -p 5433:5432 "$file" >/dev/null
until count 5433 >/dev/null 2>&1; do :; done
kept=$(psql -qAt -h 127.0.0.1 -p 5433 -U app -d shop -c "select name from customers where id = 20001")
[ "$kept" = kept ] || { echo "the row is gone"; exit 1; }
echo "another machine on the same volume: the row is there, first answer after $(ms "$begun") ms"
