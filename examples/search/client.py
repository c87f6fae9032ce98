"""Asks the search service: python3 client.py WORD [PORT]."""

import json
import sys
from urllib.parse import quote
from urllib.request import urlopen

word, port = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "8000"
with urlopen(f"http://127.0.0.1:{port}/search?q={quote(word)}", timeout=10) as answer:
    found = json.load(answer)
print(f"{found['count']} rows with {found['word']!r}")
for number, title, text in found["rows"]:
    print(f"{number:>8}  {title}: {text}")
