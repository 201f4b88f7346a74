"""The paper's claims, and all fusions, on one real data set.

    python -m oa_jax sweep --study=configs/studies/real.py:pair=beauty_elec --out=runs/beauty_elec
    python -m oa_jax sweep --study=configs/studies/real.py:pair=mybank_loan_fund,ask=modules \
      --out=runs/modules

  ask=controls  the baseline, a baseline as large as GCA early, GCA early, and GCA early with keys
                of the own domain only or of another user
  ask=claims    these (it can go on in the same folder), GCA at three other choices of places, with
                one part of the update, with both parts by learnt scales, and with penalties on the
                angle
  ask=modules   the baseline, GCA, and every other fusion at the width whose number of parameters is
                nearest to GCA's
Five seeds each. Primary comparison: test NDCG@10 among all items of each domain against the
baseline, seeds paired; for claim 2 its correlation with mean |cos(X, α ⊙ X')| over configurations
with one activation.

Arguments: `backbone`; `pair` and `size`, as in its file in configs/; `protocol`; `ask`; `runlocal`,
the baseline and GCA, two seeds of a small model, in under a minute on two cores.
"""

from oa_jax import presets
from oa_jax.nn.known import FUSIONS
from oa_jax.runs.study import matched, with_fusion

CLAIMS = {
    **{name: {"gca": name} for name in ("none", "early")},
    **{name: {"gca.source": name} for name in ("self", "shuffled")},
    **{name: {"gca": name} for name in ("stack", "1", "1-2")},
    **{
        name: {"gca.part": name, "gca.part_of": "gated"}
        for name in ("parallel", "orthogonal", "split")
    },
    **{f"penalty={x:g}": {"gca.ortho_weight": x} for x in (-0.1, 0.1, 1.0)},
}
CONTROLS = "wider", "none", "early", "self", "shuffled"
DEFAULTS = {"backbone": "abxi", "pair": "synthetic", "size": "small", "ask": "claims"}


def get_study(arg=None):
    args, runlocal = presets.study_arguments(arg, **DEFAULTS, protocol="")

    def make(gca="early", **fields):
        text = f"configs/{args['backbone']}.py:pair={args['pair']},gca={gca},size={args['size']}"
        if args["backbone"] == "sasrec" and gca == "none":  # as many streams as a fusion has
            text += ",stream=apart"
        return presets.of_study(text, runlocal, {"protocol": args["protocol"]} | fields)

    if runlocal:
        return {name: make(name) for name in ("none", "early")}
    if presets.choice("ask", args["ask"], ("claims", "controls", "modules")) == "modules":
        return {"none": make("none"), **{name: with_fusion(make(), name) for name in FUSIONS}}
    runs = {name: make(**fields) for name, fields in CLAIMS.items()}
    runs = {"wider": matched(of=make(), base=make("none"))} | runs
    return {name: runs[name] for name in (CONTROLS if args["ask"] == "controls" else runs)}
