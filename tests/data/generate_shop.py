"""Two raw CSVs of a shop of books and music, 5,000 users by default, as an export writes them:

    python tests/data/generate_shop.py DIR [USERS]

A person's taste is one of 20 topics, the same in both domains; popularity follows a power law. The
files have a byte order mark, titles in quotes, CRLF, times in milliseconds and a few rows that say
nothing.
"""

import csv
import pathlib
import sys

import numpy as np

KINDS = {"books": ("Livre", 1600), "music": ("Álbum", 1200)}
TOPICS = 20


def generate(folder: pathlib.Path, n_users: int = 5000) -> None:
    rng = np.random.default_rng(0)
    topic = rng.integers(TOPICS, size=n_users)
    for kind, (word, n_items) in KINDS.items():
        rows = []
        for user in range(n_users):
            n = rng.integers(3, 15)
            own = rng.random(n) < 0.7  # of the taste; the rest is anything
            place = (n_items // TOPICS * rng.random(n) ** 2).astype(int)
            item = np.where(own, place * TOPICS + topic[user], rng.integers(n_items, size=n))
            time = 1_700_000_000_000 + rng.integers(86_400_000 * 90, size=n)
            stars = rng.integers(1, 6, size=n)
            rows += zip([f"клиент-{user}"] * n, item, stars, time, strict=True)
        with open(folder / f"{kind}.csv", "w", newline="", encoding="utf-8-sig") as file:
            out = csv.writer(file)
            out.writerow(["customer_id", "product_id", "stars", "timestamp", "title"])
            for user, item, stars, time in sorted(rows, key=lambda row: row[3]):
                title = f'{word} "{item}", vol. {item % 7}'
                out.writerow([user, f"{kind[0]}-{item:04d}", stars, time, title])
            out.writerows([["", "x", 5, 1_700_000_000_000, ""], ["клиент-1", "", 5, "", ""]])


if __name__ == "__main__":
    place, *size = sys.argv[1:]
    pathlib.Path(place).mkdir(parents=True, exist_ok=True)
    generate(pathlib.Path(place), *map(int, size))
