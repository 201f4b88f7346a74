from oa_jax.__main__ import main  # `python -m oa_jax.data.text` is `python -m oa_jax text`

if __name__ == "__main__":
    main("text")
