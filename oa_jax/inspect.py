from oa_jax.__main__ import main  # `python -m oa_jax.inspect` is `python -m oa_jax inspect`

if __name__ == "__main__":
    main("inspect")
