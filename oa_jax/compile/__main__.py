"""`python -m oa_jax.compile` is `python -m oa_jax compile`."""

from oa_jax.__main__ import main

if __name__ == "__main__":
    main("compile")
