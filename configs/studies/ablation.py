"""Which part of GCA's update matters? Parts and penalties, ABXI on the synthetic pair.

    python -m oa_jax sweep --study=configs/studies/ablation.py --out=runs/ablation

The baseline; early GCA with the whole update, with only its part along X, and with only its part
across X (the parts of X' and of α ⊙ X'); and early GCA with penalties λ mean cos² of either sign.
One program trains all penalties, as they need no recompilation. Five seeds: 75 runs in 6 programs.
Primary comparison: each against the whole update, test NDCG@10 among all items of A, seeds paired.

`runlocal`: two penalties, two seeds, in under a minute on two cores.
"""

from oa_jax import presets
from oa_jax.runs.study import grid

PENALTIES = (-1.0, -0.3, -0.1, -0.03, 0.0, 0.03, 0.1, 0.3, 1.0, 3.0)


def get_study(arg=None):
    _, runlocal = presets.study_arguments(arg)

    def make(gca="early", part="full", of="gated", penalty=0.0):
        fields = {"gca.part": part, "gca.part_of": of, "gca.ortho_weight": penalty}
        return presets.of_study(f"configs/abxi.py:gca={gca}", runlocal, fields)

    if runlocal:
        return grid(make, penalty=(0.0, 1.0))
    return {
        **grid(make, gca=("none",)),
        **grid(make, part=("parallel", "orthogonal"), of=("update", "gated")),
        **grid(make, penalty=PENALTIES),
    }
