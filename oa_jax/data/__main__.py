"""`python -m oa_jax.data` is `python -m oa_jax data`."""

from oa_jax.__main__ import main

if __name__ == "__main__":
    main("data")
