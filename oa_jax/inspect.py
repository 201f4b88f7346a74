"""`python -m oa_jax.inspect` is `python -m oa_jax inspect`."""

from oa_jax.__main__ import main

if __name__ == "__main__":
    main("inspect")
