"""`python -m oa_jax.report` is `python -m oa_jax report`."""

from oa_jax.__main__ import main

if __name__ == "__main__":
    main("report")
