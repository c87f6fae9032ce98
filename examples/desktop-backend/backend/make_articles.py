"""Writes the articles that the backend knows: lines of `title TAB text`, the same on every run.

    python3 make_articles.py FILE [ARTICLES]
"""

import random
import sys

ARTICLES = 4000
SYLLABLES = [c + v for c in "bcdfghklmnprstvz" for v in "aeiou"]


def main(path, articles):
    rng = random.Random(20261128)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(2, 4))) for _ in range(3000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]  # few words are frequent, as in a language
    with open(path, "w", encoding="ascii") as out:
        for _ in range(articles):
            title = rng.choices(words[500:], k=2)
            text = rng.choices(words, weights, k=60)
            out.write(f"{' '.join(title)}\t{' '.join(title + text)}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else ARTICLES)
