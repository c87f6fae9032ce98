#!/bin/sh
# Goes through the scenario as the desktop program's maker and user would, and prints what it took.
# Wants `smolvm` and `python3` in PATH.
#
#     sh examples/desktop-backend/try.sh [DIRECTORY]     (where the machine files lie and stay; ./desktop-backend-try)
set -e
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-desktop-backend-try}
mkdir -p "$work"
cd "$work"
now() { date +%s%N; }
ms() { echo $((($(now) - $1) / 1000000)); }
desktop() { python3 -I "$here/desktop.py" --file app.smolmachine "$@"; }
clean() {
    smolvm rm -f notes-backend >/dev/null 2>&1 || true
    smolvm volume rm notes-data >/dev/null 2>&1 || true
    [ -z "$native" ] || kill "$native" 2>/dev/null || true
}
trap clean EXIT
clean

# The backend's start without a machine, on this host.
python3 -I "$here/backend/make_articles.py" articles.tsv
begun=$(now)
python3 -I "$here/backend/server.py" articles.tsv 8765 "$PWD/native-data" >/dev/null 2>&1 &
native=$!
until python3 -c 'import urllib.request as u; u.urlopen("http://127.0.0.1:8765/status")' 2>/dev/null; do :; done
echo "natively: first answer $(ms "$begun") ms after the start"
kill "$native"
native=

# Two versions, as their maker builds them: the second is one line different.
for version in 1 2; do
    [ ! -f "app-$version.smolmachine" ] || continue
    rm -rf "v$version"
    mkdir "v$version"
    cp -R "$here/Smolfile" "$here/backend" "v$version/"
    [ ! -f Smolfile.lock ] || cp Smolfile.lock "v$version/"
    sed -i "s/^VERSION = 1$/VERSION = $version/" "v$version/backend/server.py"
    smolvm build -q -f "v$version/Smolfile" -o "app-$version.smolmachine"
    cp "v$version/Smolfile.lock" .
done
smolvm delta create app-1.smolmachine app-2.smolmachine -o app-1-2.smoldelta

# The user's side.
cp app-1.smolmachine app.smolmachine
desktop 'add buy bread' list
for n in 1 2 3 4 5; do desktop quit; done
desktop --update app-1-2.smoldelta 'add written by version two' list
cmp app.smolmachine app-2.smolmachine && echo "the update is the very file that its maker built"
desktop list
