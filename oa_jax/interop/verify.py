from oa_jax.__main__ import main  # `python -m oa_jax.interop.verify` is `python -m oa_jax verify`

if __name__ == "__main__":
    main("verify")
