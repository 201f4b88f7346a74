from oa_jax.__main__ import main  # `python -m oa_jax.bench` is `python -m oa_jax bench`

if __name__ == "__main__":
    main("bench")
