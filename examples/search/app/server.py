"""Answers searches over a data set that it loads and indexes at start. Standard library only.

    python3 server.py FILE [PORT]

    GET /healthz          200 once the index is there
    GET /search?q=WORD    rows whose title or text has the word
    GET /whoami           process id, start time, clock, fresh UUIDs: what must be right after a resume
"""

import json
import os
import sys
import time
import uuid
from array import array
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

STARTED = time.time()


class Index:
    """Inverted index: word to the rows that hold it. The rows themselves stay in the file."""

    def __init__(self, path):
        self.offsets = array("Q")
        self.source = open(path, "rb")
        postings = {}
        offset = 0
        for row, line in enumerate(self.source):
            self.offsets.append(offset)
            offset += len(line)
            _, title, text = line.split(b"\t")
            for word in {*title.split(), *text.split()}:
                found = postings.get(word)
                if found is None:
                    found = postings[word] = array("I")
                found.append(row)
        self.offsets.append(offset)
        self.postings = postings

    def __len__(self):
        return len(self.offsets) - 1

    def row(self, at):
        """One row as (number, title, text)."""
        start, end = self.offsets[at], self.offsets[at + 1]
        number, title, text = os.pread(self.source.fileno(), end - start, start).decode("ascii").split("\t")
        return int(number), title, text.rstrip("\n")

    def search(self, word, limit=10):
        """The number of rows with the word, and the first of them."""
        found = self.postings.get(word.encode(), ())
        return len(found), [self.row(at) for at in found[:limit]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    index = None

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path == "/healthz":
            self.answer({"rows": len(self.index), "words": len(self.index.postings)})
        elif url.path == "/search":
            word = parse_qs(url.query).get("q", [""])[0]
            count, rows = self.index.search(word)
            self.answer({"word": word, "count": count, "rows": rows})
        elif url.path == "/whoami":
            self.answer({
                "pid": os.getpid(),
                "rows": len(self.index),
                "started": STARTED,
                "now": time.time(),
                "uuid": str(uuid.uuid4()),
            })
        else:
            self.answer({"error": "not found"}, status=404)

    def answer(self, value, status=200):
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form, *values):
        print(form % values, flush=True)


def main(path, port):
    begun = time.monotonic()
    Handler.index = Index(path)
    print(f"indexed {len(Handler.index)} rows in {time.monotonic() - begun:.2f} s", flush=True)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8000)
