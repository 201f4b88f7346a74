"""Which places, gate and norm are best for GCA? ABXI on the synthetic pair.

    python -m oa_jax sweep --study=configs/studies/placement.py --out=runs/placement

Every set of places × gate activation × LayerNorm × heads, five seeds: the baseline and 56 others,
285 runs in 57 programs. Primary comparison: each set of places against the baseline, test NDCG@10
among all items of A. Angles of different activations are never pooled: with tanh the angle of X'
alone is not identifiable.

`runlocal`: one place with both activations, two seeds, in under a minute on two cores.
"""

from oa_jax import presets
from oa_jax.runs.study import grid

PLACES = ("none", "0", "1", "2", "0-1", "0-2", "1-2", "0-1-2")


def get_study(arg=None):
    _, runlocal = presets.study_arguments(arg)

    def make(gca, act, norm, heads):
        if gca == "none" and (act, norm, heads) != ("sigmoid", True, 2):
            return None
        fields = {"gca.gate_act": act, "gca.layer_norm": norm, "gca.heads": heads}
        return presets.of_study(f"configs/abxi.py:gca={gca}", runlocal, fields)

    if runlocal:
        return grid(make, gca=("0",), act=("sigmoid", "tanh"), norm=(True,), heads=(2,))
    return grid(make, gca=PLACES, act=("sigmoid", "tanh"), norm=(True, False), heads=(1, 2))
