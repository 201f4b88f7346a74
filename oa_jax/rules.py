from oa_jax.__main__ import main  # `python -m oa_jax.rules` is `python -m oa_jax rules`

if __name__ == "__main__":
    main("rules")
