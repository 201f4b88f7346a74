from oa_jax.__main__ import main  # `python -m oa_jax.compile` is `python -m oa_jax compile`

if __name__ == "__main__":
    main("compile")
