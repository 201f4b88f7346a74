from oa_jax.__main__ import main  # `python -m oa_jax.evaluate` is `python -m oa_jax evaluate`

if __name__ == "__main__":
    main("evaluate")
