"""Where is X' orthogonal to X, and where does GCA gain? ABXI on the synthetic pair.

    python -m oa_jax sweep --study=configs/studies/phase.py --out=runs/phase

Redundancy ρ says how much of what B knows of A's next item A knows already; an oracle's gain
falls from 0.48 nats at ρ = 0 to none at ρ = 1. 75 configurations, five seeds each: 375 runs in 75
programs. Primary comparison: test NDCG@10 among all items of A, early against none at each ρ and
width, seeds paired; then its correlation with |cos(X, X')| over all configurations with GCA.

`runlocal`: two programs, two seeds, in under a minute on two cores.
"""

from oa_jax import presets
from oa_jax.runs.study import grid

REDUNDANCY = (0.0, 0.25, 0.5, 0.75, 1.0)
WIDTHS = (16, 32, 64)


def get_study(arg=None):
    runlocal = presets.arguments(arg, {"runlocal": "false"})["runlocal"] == "true"

    def make(redundancy, width, gca, source):
        if gca == "none" and source != "merged":
            return None
        config = presets.load(f"configs/abxi.py:gca={gca}" + ",runlocal" * runlocal)
        config.update_from_flattened_dict(
            {
                "data.world.redundancy": redundancy,
                "model.d_embed": width,
                "model.d_ffn": 8 * width // 3,
                "gca.source": source,
                "seeds": 2 if runlocal else 5,
            }
        )
        return config

    if runlocal:
        return grid(make, redundancy=(0.5,), width=(16,), gca=("none", "early"), source=("merged",))
    return grid(
        make,
        redundancy=REDUNDANCY,
        width=WIDTHS,
        gca=("none", "early", "stack"),
        source=("merged", "other"),
    )
