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
    """Inverted index: word to the rows that hold it."""

    def __init__(self, path):
        self.rows = []
        postings = {}
        with open(path, encoding="ascii") as source:
            for line in source:
                number, title, text = line.rstrip("\n").split("\t")
                row = len(self.rows)
                self.rows.append((int(number), title, text))
                for word in {*title.split(), *text.split()}:
                    found = postings.get(word)
                    if found is None:
                        found = postings[word] = array("I")
                    found.append(row)
        self.postings = postings

    def search(self, word, limit=10):
        """The number of rows with the word, and the first of them."""
        found = self.postings.get(word, ())
        return len(found), [self.rows[row] for row in found[:limit]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    index = None

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path == "/healthz":
            self.answer({"rows": len(self.index.rows), "words": len(self.index.postings)})
        elif url.path == "/search":
            word = parse_qs(url.query).get("q", [""])[0]
            count, rows = self.index.search(word)
            self.answer({"word": word, "count": count, "rows": rows})
        elif url.path == "/whoami":
            self.answer({
                "pid": os.getpid(),
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
    print(f"indexed {len(Handler.index.rows)} rows in {time.monotonic() - begun:.2f} s", flush=True)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8000)
