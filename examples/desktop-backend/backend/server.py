"""Keeps a user's notes and finds the articles that go with them. Standard library only.

    python3 server.py ARTICLES [PORT] [DATA]

    GET  /status              200 once the articles are indexed
    GET  /related?article=N   the articles most like article N
    GET  /notes               the notes, each with the articles that go with it
    POST /notes               keeps the body as a note

At its start it reads and indexes the articles and finds the neighbours of each: seconds of work, done once, before
the machine is frozen. The notes are in DATA, where a volume is mounted in a machine that was resumed: so no file
there is open but while a request needs it.
"""

import json
import os
import sqlite3
import sys
import time
from array import array
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log, sqrt
from urllib.parse import parse_qs, urlsplit

VERSION = 1
RELATED = 5
LONGEST_NOTE = 100_000


class Articles:
    """Articles by the words they share: each word counts by its rarity (tf-idf), likeness is the cosine."""

    def __init__(self, path):
        self.titles, texts = [], []
        once = {}  # each word is kept once, however often it is read: what memory holds, the machine file holds
        with open(path, encoding="ascii") as lines:
            for line in lines:
                title, text = line.rstrip("\n").split("\t")
                self.titles.append(title)
                texts.append([once.setdefault(word, word) for word in text.split()])
        self.index(texts)
        self.neighbours = [array("I", self.like(words, skip=number)) for number, words in enumerate(texts)]

    def index(self, texts):
        """Each word's articles, and how much of each is that word."""
        found = {}
        for number, words in enumerate(texts):
            for word in words:
                counts = found.setdefault(word, {})
                counts[number] = counts.get(number, 0) + 1
        lengths = [0.0] * len(texts)
        self.rarity = {word: log(len(texts) / len(counts)) for word, counts in found.items()}
        for word, counts in found.items():
            for number, count in counts.items():
                lengths[number] += (count * self.rarity[word]) ** 2
        self.postings = {
            word: (
                array("I", counts),
                array("f", (n * self.rarity[word] / sqrt(lengths[number]) for number, n in counts.items())),
            )
            for word, counts in found.items()
        }

    def like(self, words, skip=None):
        """The articles most like a text, the most first."""
        scores = [0.0] * len(self.titles)
        for word in words:
            if word in self.postings:
                rarity = self.rarity[word]
                for number, weight in zip(*self.postings[word]):
                    scores[number] += rarity * weight
        if skip is not None:
            scores[skip] = 0.0
        best = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:RELATED]
        return [number for number in best if scores[number] > 0.0]

    def related(self, number):
        return [self.titles[n] for n in self.neighbours[number]]


class Notes:
    """The user's notes, in a database that is open while it is used."""

    def __init__(self, directory):
        self.directory = directory

    def open(self):
        os.makedirs(self.directory, exist_ok=True)
        database = sqlite3.connect(os.path.join(self.directory, "notes.db"))
        database.execute("create table if not exists notes (id integer primary key, text not null)")
        return database

    def all(self):
        with closing(self.open()) as database:
            return database.execute("select id, text from notes order by id").fetchall()

    def add(self, text):
        with closing(self.open()) as database, database:
            return database.execute("insert into notes (text) values (?)", (text,)).lastrowid


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    articles = notes = None

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path == "/status":
            self.answer({"version": VERSION, "articles": len(self.articles.titles), "pid": os.getpid()})
        elif url.path == "/related":
            number = parse_qs(url.query).get("article", [""])[0]
            if number.isdecimal() and int(number) < len(self.articles.titles):
                self.answer(self.articles.related(int(number)))
            else:
                self.answer({"error": "no such article"}, status=404)
        elif url.path == "/notes":
            self.answer([self.note(number, text) for number, text in self.notes.all()])
        else:
            self.answer({"error": "not found"}, status=404)

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if urlsplit(self.path).path != "/notes" or not length.isdecimal() or int(length) > LONGEST_NOTE:
            self.close_connection = True
            self.answer({"error": "not found, or not a note"}, status=404)
            return
        text = self.rfile.read(int(length)).decode("utf-8", "replace")
        self.answer(self.note(self.notes.add(text), text), status=201)

    def note(self, number, text):
        titles = [self.articles.titles[n] for n in self.articles.like(text.lower().split())]
        return {"id": number, "text": text, "articles": titles}

    def answer(self, value, status=200):
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form, *values):
        print(form % values, flush=True)


def main(path, port, directory):
    begun = time.monotonic()
    Handler.articles, Handler.notes = Articles(path), Notes(directory)
    print(f"{len(Handler.articles.titles)} articles indexed in {time.monotonic() - begun:.2f} s", flush=True)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    words = sys.argv[1:] + ["8000", "/data"][len(sys.argv) - 2:]
    main(words[0], int(words[1]), words[2])
