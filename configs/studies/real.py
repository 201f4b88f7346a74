"""The claims and the modules on sets that people made. One set at a time.

    python -m oa_jax sweep --study=configs/studies/real.py:pair=beauty_elec --out=runs/beauty_elec
    python -m oa_jax sweep --study=configs/studies/real.py:pair=mybank_loan_fund,ask=modules \
      --out=runs/modules

`ask=claims`: the baseline, a baseline as large as GCA early, GCA at four choices of places, its
controls (no other domain, another user's), one part of the update or both with learnt scales, and
penalties on the angle. `ask=modules`: the baseline, GCA and every other fusion at the width whose
number of parameters is nearest to GCA's. Five seeds each. Primary comparison: test NDCG@10 among
all items of each domain against the baseline, seeds paired; of claim 2 its correlation with
mean |cos(X, α ⊙ X')| over configurations with one activation.

Arguments: `backbone`, and `pair` and `size` as its file in configs/ takes them; `ask`; `runlocal`,
the baseline and GCA, two seeds of a small model, in under a minute on two cores.
"""

from oa_jax import presets
from oa_jax.nn.known import FUSIONS
from oa_jax.runs.study import matched, with_fusion

CLAIMS = {
    **{name: {"gca": name} for name in ("none", "early", "stack", "1", "1-2")},
    **{name: {"gca.source": name} for name in ("self", "shuffled")},
    **{
        name: {"gca.part": name, "gca.part_of": "gated"}
        for name in ("parallel", "orthogonal", "split")
    },
    **{f"penalty={x:g}": {"gca.ortho_weight": x} for x in (-0.1, 0.1, 1.0)},
}
DEFAULTS = {"backbone": "abxi", "pair": "synthetic", "size": "small", "ask": "claims"}


def get_study(arg=None):
    args = presets.arguments(arg, DEFAULTS | {"runlocal": "false"})
    runlocal = presets.is_true("runlocal", args["runlocal"])

    def make(gca="early", **fields):
        text = f"configs/{args['backbone']}.py:pair={args['pair']},gca={gca},size={args['size']}"
        config = presets.load(text + ",runlocal" * runlocal)
        config.update_from_flattened_dict(fields | {"seeds": 2 if runlocal else 5})
        return config

    if runlocal:
        return {name: make(name) for name in ("none", "early")}
    if presets.choice("ask", args["ask"], ("claims", "modules")) == "claims":
        wider = {"wider": matched(of=make(), base=make("none"))}
        return wider | {name: make(**fields) for name, fields in CLAIMS.items()}
    return {"none": make("none"), **{name: with_fusion(make(), name) for name in FUSIONS}}
