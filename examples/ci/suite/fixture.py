"""What a test environment takes long to set up: a data set in memory, served over HTTP."""

import hashlib
import json
import random
from http.server import BaseHTTPRequestHandler, HTTPServer

generator = random.Random(7)
ORDERS = {n: {"customer": generator.randrange(5000), "cents": generator.randrange(1, 100000)} for n in range(100000)}
changes = 0


def state():
    """A digest of all that the fixture holds: two machines that say the same are the same."""
    text = json.dumps([sorted(ORDERS.items()), changes]).encode()
    return {"orders": len(ORDERS), "changes": changes, "digest": hashlib.sha256(text).hexdigest()}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/state":
            return self.answer(200, state())
        order = ORDERS.get(int(self.path.rsplit("/", 1)[-1]))
        self.answer(200 if order else 404, order)

    def do_POST(self):
        global changes
        changes += 1
        ORDERS[len(ORDERS)] = {"customer": changes, "cents": 1}
        self.answer(201, {"id": len(ORDERS) - 1})

    def answer(self, code, value):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
