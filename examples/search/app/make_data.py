"""Writes the data set: rows of `id TAB title TAB text`, the same on every run.

    python3 make_data.py FILE [ROWS]
"""

import random
import sys

ROWS = 1_200_000
SYLLABLES = [c + v for c in "bcdfghklmnprstvz" for v in "aeiou"]


def words(rng, count):
    """Made-up words, each a few syllables long."""
    return ["".join(rng.choices(SYLLABLES, k=rng.randint(2, 4))) for _ in range(count)]


def main(path, rows):
    rng = random.Random(20261123)
    common, rare = words(rng, 400), words(rng, 20_000)
    choices = rng.choices
    with open(path, "w", encoding="ascii") as out:
        for start in range(0, rows, 1000):
            # Drawn a thousand rows at a time: most of the work then happens inside the library.
            titles = choices(rare, k=2000)
            texts = choices(common, k=6000)
            out.write("".join(
                f"{start + i}\t{titles[2 * i]} {titles[2 * i + 1]}\t{' '.join(texts[6 * i:6 * i + 6])}\n"
                for i in range(1000)
            ))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else ROWS)
