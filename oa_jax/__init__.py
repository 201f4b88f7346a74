"""oa-jax: cross-domain sequential recommenders with gated cross-attention, in JAX and Flax.

    import oa_jax as oa
    run = oa.train(oa.config("abxi", gca="early", seeds=5), oa.World(redundancy=0.5), "runs/early")
    run.summary["mean"]["test/A/ndcg@10/full"]

Only the names of `__all__` are public. They are loaded when first asked for: `import oa_jax` costs
no JAX.
"""

import importlib

__version__ = "0.1.0"

_MODULES = {
    "oa_jax.api": ("Run", "config", "open", "read_events", "sweep", "train"),
    "oa_jax.configuration": ("Config",),
    "oa_jax.data.sources": ("load",),
    "oa_jax.errors": ("Interrupted", "UserError"),
    "oa_jax.events.log": ("InteractionLog", "make_log"),
    "oa_jax.events.split": ("Split", "make_split"),
    "oa_jax.events.world": ("World",),
    "oa_jax.nn.fusion": ("Fusion", "Probe", "Taken"),
    "oa_jax.nn.layer": ("GatedCrossAttentionLayer",),
    "oa_jax.ranking.candidates": ("draw_candidates",),
    "oa_jax.ranking.metrics": ("rank_metrics", "user_metrics"),
    "oa_jax.serving.exported": ("load_export",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
