"""A desktop program whose backend is a machine. Text instead of windows; standard library only.

    python3 desktop.py [--file FILE]                 the program: add, list, quit
    python3 desktop.py [--file FILE] COMMAND…        the same, commands given as words
    python3 desktop.py [--file FILE] --update DELTA  brings the backend to its next version first

FILE is notes-backend.smolmachine beside this program when not said. `smolvm` is found in PATH.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from urllib.request import Request, urlopen

HERE = os.path.dirname(os.path.abspath(__file__))
PORT = 8000  # the backend's, in its machine


def smolvm(*words, may_fail=False):
    """Runs smolvm; its result, None where it may fail and does. Else what it says is the user's to read."""
    said = subprocess.DEVNULL if may_fail else None
    done = subprocess.run(["smolvm", *words], stdout=subprocess.PIPE, stderr=said, text=True)
    if done.returncode == 0:
        return done.stdout
    if may_fail:
        return None
    raise SystemExit(f"the backend: `smolvm {' '.join(words)}` ended with {done.returncode}")


class Backend:
    """The machine. It is there from start() to stop(); the notes are on the volume and stay."""

    def __init__(self, file, name="notes-backend", volume="notes-data"):
        self.file, self.name, self.volume = file, name, volume
        self.address = None

    def start(self):
        """Resumes the backend as it was frozen: ready."""
        # -P: any free port of loopback, and the answer says which.
        run = ["run", "-d", "--json", "-P", "--name", self.name, "-v", f"{self.volume}:/data", self.file]
        answer = smolvm(*run, may_fail=True)
        if answer is None:
            # One that was left by a program that was killed; else the second try says what is wrong.
            smolvm("rm", "-f", self.name, may_fail=True)
            answer = smolvm(*run)
        self.reach(answer)

    def reach(self, answer):
        ports = {guest: host for host, guest in json.loads(answer)["ports"]}
        self.address = f"http://{ports[PORT]}"

    def stop(self):
        smolvm("rm", "-f", self.name)

    def update(self, delta):
        """To the version that the delta leads to, while it runs. The old file is the new one only when that is whole."""
        new = f"{self.file}.new"
        smolvm("delta", "apply", "-q", self.file, delta, "-o", new)
        self.reach(smolvm("update", "--json", self.name, "--to", new))
        os.replace(new, self.file)

    def ask(self, path, body=None):
        with urlopen(Request(self.address + path, data=body), timeout=30) as answer:
            return json.load(answer)


def show(note):
    print(f"{note['id']:>3}  {note['text']}")
    if note["articles"]:
        print(f"     see: {', '.join(note['articles'])}")


def act(backend, line):
    """One command of the user; whether the program goes on."""
    verb, _, rest = line.strip().partition(" ")
    if verb == "add" and rest:
        show(backend.ask("/notes", rest.encode()))
    elif verb == "list":
        for note in backend.ask("/notes"):
            show(note)
    elif verb == "related" and rest.isdecimal():
        print(", ".join(backend.ask(f"/related?article={rest}")))
    elif verb == "quit":
        return False
    elif verb:
        print("add TEXT, list, related NUMBER, quit")
    return True


def main():
    words = argparse.ArgumentParser(description="Notes, and the articles that go with them.")
    words.add_argument("--file", default=os.path.join(HERE, "notes-backend.smolmachine"))
    words.add_argument("--update", metavar="DELTA")
    words.add_argument("commands", nargs="*")
    words = words.parse_args()
    # A path to smolvm, not a name in its store.
    backend = Backend(os.path.abspath(words.file))
    begun = time.monotonic()
    backend.start()
    try:
        status = backend.ask("/status")
        took = (time.monotonic() - begun) * 1000
        print(f"backend version {status['version']}: {status['articles']} articles, ready after {took:.0f} ms")
        if words.update:
            backend.update(words.update)
            print(f"backend version {backend.ask('/status')['version']}")
        for line in words.commands or prompt():
            if not act(backend, line):
                break
    finally:
        backend.stop()


def prompt():
    """The user's lines, until there are no more."""
    print("add TEXT, list, related NUMBER, quit")
    while True:
        print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line


if __name__ == "__main__":
    main()
