"""`python -m oa_jax.data` where polars is not installed."""

import runpy
import sys

sys.modules["polars"] = None  # its import fails
runpy.run_module("oa_jax.data", run_name="__main__", alter_sys=True)
