"""Why is the angle between X and X' what it is? One factor at a time, ABXI, synthetic pair.

    python -m oa_jax sweep --study=configs/studies/angle.py --out=runs/angle

GCA early with every combination of the gate's activation, tied or untied item tables and four
widths; then single changes at width 32: dropout, learning rate and weight decay (which need no
recompilation), the source, the own item hidden, later places, no norm, no residual. Five seeds:
135 runs in 24 programs. Primary comparison: mean |cos(X, α ⊙ X')| and |mean cos(X, X')| on test
tokens of A against those of the default, seeds paired; test NDCG@10 shows what a change costs.
A mixture of the sigmoid and tanh runs is compared with the paper's scatter.

`runlocal`: both activations, two seeds, in under a minute on two cores.
"""

from oa_jax import presets
from oa_jax.runs.study import grid

CHANGES = {
    "no_dropout": {"model.dropout": 0.0},
    "half_rate": {"train.learning_rate": 1e-3},
    "no_decay": {"train.weight_decay": 0.0},
    "other": {"gca.source": "other"},
    "self": {"gca.source": "self"},
    "shuffled": {"gca.source": "shuffled"},
    "hidden": {"gca.own_item": "hidden"},
    "place_1": {"gca.positions": (1,)},
    "place_2": {"gca.positions": (2,)},
    "no_norm": {"gca.layer_norm": False},
    "no_residual": {"gca.residual": False},
}


def get_study(arg=None):
    _, runlocal = presets.study_arguments(arg)

    def make(act="sigmoid", tied=True, width=32, change=""):
        fields = {"model.d_embed": width, "model.d_ffn": 8 * width // 3, "model.tied": tied}
        fields |= {"gca.gate_act": act} | CHANGES.get(change, {})
        return presets.of_study("configs/abxi.py:gca=early", runlocal, fields)

    acts = ("sigmoid", "tanh")
    if runlocal:
        return grid(make, act=acts, width=(16,))
    crossed = grid(make, act=acts, tied=(True, False), width=(16, 32, 64, 128))
    return crossed | grid(make, change=CHANGES)
