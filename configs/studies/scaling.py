"""Is GCA worth its parameters? Baselines of five widths and two depths against GCA of two sizes.

    python -m oa_jax sweep --study=configs/studies/scaling.py:backbone=abxi --out=runs/scaling
    python -m analysis scaling --runs=runs/scaling --out=out/scaling

The baseline in five widths; for each GCA variant, a baseline with as many parameters (`matched`),
by width and, for backbones with free depth, by depth; GCA early and stack in two widths. Each has
three learning rates, of which `analysis` takes the best one on validation. Five seeds.
Primary comparison: N*/N, the number of parameters at which the baseline reaches GCA's quality over
GCA's.

Arguments: `backbone` abxi | llm4cdsr; `pair` and `size`, as in its file in configs/;
`protocol`; `runlocal`, two widths, two seeds, in under a minute on two cores.
"""

from oa_jax import presets
from oa_jax.runs.study import grid, matched

RATES = (0.5, 1.0, 2.0)  # times the file's own
WIDTHS = (0.5, 0.75, 1.0, 1.5, 2.0)
DEFAULTS = {"backbone": "abxi", "pair": "synthetic", "size": "official"}


def get_study(arg=None):
    args, runlocal = presets.study_arguments(arg, **DEFAULTS, protocol="")
    backbone = args["backbone"]
    text = f"configs/{backbone}.py:pair={args['pair']},size={args['size']}"

    def sized(gca, width=1.0, rate=1.0):
        config = presets.of_study(f"{text},gca={gca}", runlocal, {"protocol": args["protocol"]})
        heads = config.model.heads
        config.model.d_embed = round(config.model.d_embed * width / heads) * heads
        config.train.learning_rate *= rate
        return config

    def equal(to, by, rate):
        return matched(of=sized(to), base=sized("none", rate=rate), by=by)

    if runlocal:
        return grid(sized, gca=("none",), width=(0.5, 1.0), rate=(1.0,))
    by = ("width",) if backbone == "abxi" else ("width", "depth")  # ABXI has one block by design
    return {
        **grid(sized, gca=("none",), width=WIDTHS, rate=RATES),
        **grid(equal, to=("early", "stack"), by=by, rate=RATES),
        **grid(sized, gca=("early", "stack"), width=(0.5, 1.0), rate=RATES),
    }
