"""Patterns over generated text."""
import re
import sys

state = 1
words = []
for _ in range(4000):
    state = state * 1103515245 + 12345 & 0x7FFFFFFF
    words.append(f"w{state % 997}@host{state % 31}.example {state >> 8 & 0xFFF}:{state & 0x3F}")
text = "\n".join(words)
mail = re.compile(r"(\w+)@([\w.]+)")
pair = re.compile(r"(?P<a>\d{2,4}):(?P<b>\d+)$", re.M)
lazy = re.compile(r"host(?:1|2)\d*?\.(?=exam)")
found = 0
for _ in range(int(sys.argv[1])):
    found += len(mail.findall(text)) + len(lazy.findall(text))
    found += sum(int(m["b"]) for m in pair.finditer(text))
    found += len(mail.sub(r"\2 at \1", text))
print(found)
