"""Text to objects and back."""
import json
import sys

rows = [{"id": i, "name": f"row {i}", "tags": ["a", "b\u00e9", str(i * 7)], "value": i / 7, "on": i % 2 == 0}
        for i in range(500)]
length = 0
for _ in range(int(sys.argv[1])):
    text = json.dumps(rows)
    rows = json.loads(text)
    length += len(json.dumps(rows, indent=1, sort_keys=True))
print(length)
