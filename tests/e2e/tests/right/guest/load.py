"""Work whose results are known.

load.py work DIGEST     a thread a processor computes DIGEST again and again (hashlib lets go of Python's lock for large
                        blocks: they run at once), and a database takes rows, each brought to the disk
load.py wait            until each of them went on; then says so
load.py check           the database: whole, every row the digest of the one before, none missing that was acknowledged
"""

import hashlib
import os
import sqlite3
import sys
import threading
import time

PLACE = "/root/load"
DATABASE = f"{PLACE}/rows.db"


def fail(text):
    with open(f"{PLACE}/wrong", "a") as file:
        file.write(text + "\n")


def write(name, text):
    """Replaces a file; a reader sees the old or the new."""
    with open(f"{PLACE}/{name}.part", "w") as file:
        file.write(text)
    os.rename(f"{PLACE}/{name}.part", f"{PLACE}/{name}")


def compute(index, wanted):
    count = 0
    while True:
        block, digest = bytearray([7]) * 65536, bytes(32)
        for _ in range(32):
            block[:32] = digest
            digest = hashlib.sha256(block).digest()
        if digest.hex() != wanted:
            fail(f"thread {index}: {digest.hex()}")
        count += 1
        write(f"count.{index}", str(count))


def link(number, before):
    return hashlib.sha256(f"{number} {before}".encode()).hexdigest()


def keep_rows():
    database = sqlite3.connect(DATABASE, isolation_level=None, timeout=60)
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE rows(number INTEGER PRIMARY KEY, digest TEXT)")
    number, digest = 0, ""
    acknowledged = os.open(f"{PLACE}/acknowledged", os.O_CREAT | os.O_WRONLY)
    while True:
        number, digest = number + 1, link(number + 1, digest)
        database.execute("INSERT INTO rows VALUES (?, ?)", (number, digest))
        os.pwrite(acknowledged, f"{number:12}".encode(), 0)
        os.fsync(acknowledged)
        time.sleep(0.005)


def counts():
    def read(name):
        try:
            return int(open(f"{PLACE}/{name}").read())
        except (FileNotFoundError, ValueError):
            return 0

    return [read(f"count.{index}") for index in range(os.cpu_count())] + [read("acknowledged")]


def wait():
    before = counts()
    while not all(now > then for now, then in zip(counts(), before)):
        if os.path.exists(f"{PLACE}/wrong"):
            sys.exit(open(f"{PLACE}/wrong").read())
        time.sleep(0.05)
    print("went on")


def check():
    acknowledged = counts()[-1]
    database = sqlite3.connect(DATABASE, timeout=60)
    said = database.execute("PRAGMA integrity_check").fetchall()
    rows = database.execute("SELECT number, digest FROM rows ORDER BY number").fetchall()
    digest = ""
    for place, (number, found) in enumerate(rows, 1):
        digest = link(place, digest)
        if (number, found) != (place, digest):
            sys.exit(f"row {place} is {number}, {found}")
    if said != [("ok",)] or len(rows) < acknowledged or os.path.exists(f"{PLACE}/wrong"):
        sys.exit(f"{said}, {len(rows)} rows, {acknowledged} acknowledged")
    print(f"whole, rows: {len(rows)}")


if sys.argv[1] == "work":
    os.makedirs(PLACE)
    for index in range(os.cpu_count()):
        threading.Thread(target=compute, args=(index, sys.argv[2])).start()
    keep_rows()
else:
    {"wait": wait, "check": check}[sys.argv[1]]()
