"""`python -m oa_jax.quickstart` is `python -m oa_jax quickstart`."""

from oa_jax.__main__ import main

if __name__ == "__main__":
    main("quickstart")
