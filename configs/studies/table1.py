"""Table 1 of the paper (arXiv 2510.09435): every backbone and pair, with GCA at each place.

    python -m oa_jax sweep --study=configs/studies/table1.py:backbone=abxi --out=runs/table1

Baseline, early and stack on each pair, official size, five seeds, to early stopping: 6 runs for
each backbone. Primary comparison: early against the baseline, test NDCG@10 of each domain with the
paper's candidates, seeds paired. Prepare the data first (oa_jax/data/README.md). On a CPU use
`size=small`; `--dry-run` predicts the time.

Arguments: `backbone` abxi | llm4cdsr | cdsrnp | all; `size` official | small; `runlocal`, the
synthetic pair with two seeds, in under a minute on two cores.
"""

from oa_jax import presets

PAIRS = {
    "abxi": ("beauty_elec", "food_kitchen"),
    "llm4cdsr": ("cloth_sport", "elec_phone"),
    "cdsrnp": ("cloth_sport_amid", "elec_phone_amid"),
}


def get_study(arg=None):
    args, runlocal = presets.study_arguments(arg, backbone="all", size="official")
    presets.choice("backbone", args["backbone"], ("all", *PAIRS))
    if runlocal:
        return {g: presets.of_study(f"configs/abxi.py:gca={g}", True) for g in ("none", "early")}
    wanted = PAIRS if args["backbone"] == "all" else (args["backbone"],)
    return {
        f"{backbone},{pair},gca={gca}": presets.load(
            f"configs/{backbone}.py:pair={pair},gca={gca},size={args['size']}"
        )
        for backbone in wanted
        for pair in PAIRS[backbone]
        for gca in ("none", "early", "stack")
    }
