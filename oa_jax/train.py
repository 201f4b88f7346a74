"""`python -m oa_jax.train` is `python -m oa_jax train`."""

from oa_jax.__main__ import main

if __name__ == "__main__":
    main("train")
