"""Is it cross-attention, is it parameters, is it the other domain? ABXI on the synthetic pair.

    python -m oa_jax sweep --study=configs/studies/arms.py --out=runs/arms

At place 0, for redundancy 0, 0.5 and 1: the baseline, a baseline as large as GCA early, GCA early
and its control arms (Y without the other domain, of another user, of the other domain alone; own
item hidden; no residual; no norm; other gates; one part of the update; both with learnt scales),
and every other fusion at the width whose number of parameters is nearest to GCA's. Five seeds: 405
runs in 81 programs. Primary comparison: the gain over the baseline in test NDCG@10 among all items
of A, seeds paired, as a share of the oracle's gain; then Kendall's τ of gain and angle over
fusions.

`runlocal`: the baseline and one fusion, two seeds, in under a minute on two cores.
"""

from oa_jax import presets
from oa_jax.nn.known import FUSIONS
from oa_jax.runs.study import grid, matched, with_fusion

ARMS = {
    "gca": {},
    "self": {"gca.source": "self"},
    "shuffled": {"gca.source": "shuffled"},
    "other": {"gca.source": "other"},
    "hidden": {"gca.own_item": "hidden"},
    "no_residual": {"gca.residual": False},
    "no_norm": {"gca.layer_norm": False},
    "no_gate": {"gca.gate": "none"},
    "scalar_gate": {"gca.gate": "scalar"},
    "tanh_gate": {"gca.gate_act": "tanh"},
    "parallel": {"gca.part": "parallel", "gca.part_of": "gated"},
    "orthogonal": {"gca.part": "orthogonal", "gca.part_of": "gated"},
    "split": {"gca.part": "split", "gca.part_of": "gated"},
}
OTHERS = tuple(name for name in FUSIONS if name != "gca")


def get_study(arg=None):
    _, runlocal = presets.study_arguments(arg)

    def make(arm, redundancy):
        def config(gca):
            fields = {"data.world.redundancy": redundancy} | ARMS.get(arm, {})
            return presets.of_study(f"configs/abxi.py:gca={gca}", runlocal, fields)

        if arm == "baseline":
            return config("none")
        if arm == "wider":
            return matched(config("early"), config("none"))
        return config("early") if arm in ARMS else with_fusion(config("early"), arm)

    if runlocal:
        return grid(make, arm=("baseline", "film"), redundancy=(0.5,))
    arms = ("baseline", "wider", *ARMS, *OTHERS)
    return grid(make, arm=arms, redundancy=(0.0, 0.5, 1.0))
