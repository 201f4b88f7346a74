from oa_jax.__main__ import main  # `python -m oa_jax.report` is `python -m oa_jax report`

if __name__ == "__main__":
    main("report")
