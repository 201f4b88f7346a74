"""What does GCA add if the encoders of both domains are aligned already? LLM4CDSR, synthetic pair.

    python -m oa_jax sweep --study=configs/studies/alignment.py --out=runs/alignment

The paper leaves open whether X' stays orthogonal to X if encoders are aligned beforehand, as in
vision-language models. The study uses the same events with four kinds of frozen item vectors: as
one encoder gives them; B's turned by a random orthogonal matrix, which keeps the information of
each domain, but no common direction; both trained contrastively on what users took; B's shifted by
a gap. Each without GCA and with GCA early, five seeds: 40 runs in 8 programs.

Primary comparison: the gain of GCA early over none in test NDCG@10 of A among the candidates, seeds
paired, with `aligned` against `rotated`; then |cos(X, α ⊙ X')| of both beside their nulls.

Arguments: `views` 1 | 2. With 2, A's items have a random encoder of images and B's a random encoder
of texts: `as_is` has nothing in common; `aligned` trains both contrastively on pairs of views;
`rotated` and `shifted` change the aligned vectors. `runlocal`: `aligned` and `rotated` with GCA
early, two seeds, in under a minute on two cores.
"""

from oa_jax import presets
from oa_jax.runs.study import grid

ALIGNMENTS = {
    "as_is": {},
    "rotated": {"data.world.rotation": 1.0},
    "aligned": {"data.world.aligned": True},
    "shifted": {"data.world.gap": 1.0},
}


def get_study(arg=None):
    args, runlocal = presets.study_arguments(arg, views="1")
    views = int(presets.choice("views", args["views"], ("1", "2")))

    def make(alignment, gca):
        fields = {"data.world.views": views, **ALIGNMENTS[alignment]}
        if views == 2 and alignment != "as_is":
            fields["data.world.aligned"] = True
        return presets.of_study(f"configs/llm4cdsr.py:gca={gca}", runlocal, fields)

    if runlocal:
        return grid(make, alignment=("aligned", "rotated"), gca=("early",))
    return grid(make, alignment=tuple(ALIGNMENTS), gca=("none", "early"))
