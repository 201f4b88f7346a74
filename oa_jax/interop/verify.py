"""`python -m oa_jax.interop.verify` is `python -m oa_jax verify`."""

from oa_jax.__main__ import main

if __name__ == "__main__":
    main("verify")
