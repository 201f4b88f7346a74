"""`python -m oa_jax.data.text` is `python -m oa_jax text`."""

from oa_jax.__main__ import main

if __name__ == "__main__":
    main("text")
