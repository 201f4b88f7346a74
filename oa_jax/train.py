from oa_jax.__main__ import main  # `python -m oa_jax.train` is `python -m oa_jax train`

if __name__ == "__main__":
    main("train")
