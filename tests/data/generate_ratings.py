"""Two "ratings only" files of any size, to time the filters on:

    python tests/data/generate_ratings.py 10000000 DIR
    /usr/bin/time -v python -m oa_jax data prepare beauty_elec --raw_dir=DIR --data_dir=DIR

Popularity and activity follow power laws, a third of the users have both domains, times are days.
"""

import pathlib
import sys

import numpy as np
import polars as pl

CATEGORIES = ("Beauty", "Electronics")


def generate(n_rows: int, folder: pathlib.Path) -> None:
    """Write n_rows ratings, two fifths of them of A."""
    rng = np.random.default_rng(0)
    n_users = n_rows // 3
    for domain, (category, share) in enumerate(zip(CATEGORIES, (0.4, 0.6), strict=True)):
        n = round(n_rows * share)
        # The first third of the ids takes part in both domains.
        user = (n_users * rng.random(n) ** 2.5).astype(np.int64)
        user = np.where(user > n_users // 3, user * 2 + domain, user * 2)
        item = ((n_rows // 40) * rng.random(n) ** 3).astype(np.int64)
        day = rng.integers(10_000, 16_000, n) * 86_400
        table = pl.DataFrame({"u": user, "i": item, "r": rng.integers(1, 6, n), "t": day})
        text = table.select(
            pl.format("A{}", pl.col("u").cast(pl.String).str.zfill(13)),
            pl.format("{}{}", pl.lit("BE"[domain]), pl.col("i").cast(pl.String).str.zfill(9)),
            pl.format("{}.0", "r"),
            "t",
        )
        text.write_csv(folder / f"ratings_{category}.csv", include_header=False)


if __name__ == "__main__":
    size, place = sys.argv[1:]
    pathlib.Path(place).mkdir(parents=True, exist_ok=True)
    generate(int(size), pathlib.Path(place))
