"""Where is X' orthogonal to X, and where does GCA gain? ABXI on the synthetic pair.

    python -m oa_jax sweep --study=configs/studies/phase.py --out=runs/phase

Redundancy ρ sets how much of what B knows about A's next item is already in A's history; the gain
of an oracle falls from 0.48 nats at ρ = 0 to none at ρ = 1. The first part crosses ρ, width and
places, each with the merged stream as source, and with the own domain only (self). The other parts
keep width 32 and vary the source, tied item tables, synergy and heads. Five seeds: 330 runs in 66
programs. Primary comparison: test NDCG@10 among all items of A, early against none at each ρ and
width, seeds paired; then its correlation with |cos(X, α ⊙ X')| over all configurations with GCA.

`runlocal`: two programs, two seeds, in under a minute on two cores.
"""

from oa_jax import presets
from oa_jax.runs.study import grid

KNOBS = (0.0, 0.25, 0.5, 0.75, 1.0)


def get_study(arg=None):
    _, runlocal = presets.study_arguments(arg)

    def make(redundancy, gca, width=32, source="merged", tied=True, synergy=0.0, heads=0):
        if gca == "none" and source != "merged":
            return None
        fields = {"data.world.redundancy": redundancy, "data.world.synergy": synergy}
        fields |= {"model.d_embed": width, "model.d_ffn": 8 * width // 3, "model.tied": tied}
        fields |= {"gca.source": source, "gca.heads": heads}
        return presets.of_study(f"configs/abxi.py:gca={gca}", runlocal, fields)

    if runlocal:
        return grid(make, redundancy=(0.5,), width=(16,), gca=("none", "early"))
    places, ends = ("none", "early", "stack"), (0.0, 0.5, 1.0)
    sources = {"gca": places, "source": ("merged", "self")}
    return {
        **grid(make, redundancy=ends, width=(16, 64), **sources),
        **grid(make, redundancy=KNOBS, width=(32,), gca=places),
        **grid(make, redundancy=ends, gca=("early",), source=("other", "self", "shuffled")),
        **grid(make, redundancy=ends, gca=places[:2], tied=(False,)),
        **grid(make, redundancy=(0.5,), gca=places[:2], synergy=(0.5, 1.0)),
        **grid(make, redundancy=(0.5,), gca=("early",), heads=(1, 4)),
    }
