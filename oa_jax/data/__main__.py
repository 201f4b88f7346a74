from oa_jax.__main__ import main  # `python -m oa_jax.data` is `python -m oa_jax data`

if __name__ == "__main__":
    main("data")
