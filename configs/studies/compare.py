"""Does GCA help on one data set, such as your own? The baseline and GCA early, five seeds each.

    python -m oa_jax sweep --study=configs/studies/compare.py:pair=shop --out=runs/shop
    python -m analysis report --fast --runs=runs/shop --out=out/shop

10 runs in two programs. Primary comparison: early against the baseline, test NDCG@10 among all
items of each domain, with the interval over seeds and users from `analysis`.

Arguments: `backbone`; `pair`, `gca` and `size`, as in its file in configs/; `seeds`; `protocol`;
`n_negatives`, the number of random candidates of a target (give fewer if a domain has few items);
`runlocal`, two seeds of a small model, in under a minute on two cores.
"""

from oa_jax import presets

DEFAULTS = {"backbone": "abxi", "pair": "synthetic", "gca": "early", "size": "official"}
FIELDS = {"seeds": "seeds", "protocol": "protocol", "n_negatives": "evaluate.n_negatives"}


def get_study(arg=None):
    args, runlocal = presets.study_arguments(arg, **DEFAULTS, **dict.fromkeys(FIELDS, ""))
    runs = {}
    for gca in ("none", args["gca"]):
        text = f"configs/{args['backbone']}.py:pair={args['pair']},gca={gca},size={args['size']}"
        if args["backbone"] == "sasrec" and gca == "none":  # as many streams as a fusion has
            text += ",stream=apart"
        fields = {
            field: int(args[name]) if args[name].isdecimal() else args[name]
            for name, field in FIELDS.items()
        }
        runs[gca] = presets.of_study(text, runlocal, fields)
    return runs
