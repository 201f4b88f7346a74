from oa_jax.__main__ import main  # `python -m oa_jax.quickstart` is `python -m oa_jax quickstart`

if __name__ == "__main__":
    main("quickstart")
