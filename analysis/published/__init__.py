"""Values of arXiv 2510.09435, and summaries of our own finished runs."""

import functools
import json
import pathlib
import re

from ..runs import Run

# Names of metrics in the tables of the paper -> ours, without the domain.
METRICS = {"ndcg1": "ndcg@1", "ndcg10": "ndcg@10", "auc": "auc"}
WIDER = 1.5  # widths that differ by less than this factor are comparable


@functools.cache
def paper() -> dict:
    """Everything of published/paper.json, each part with its `source`."""
    return json.loads((pathlib.Path(__file__).parent / "paper.json").read_text("utf-8"))


def same_data(dataset: str, name: str) -> bool:
    """Whether a data set of the paper, such as "Food-Kitch", is the pair `food_kitchen`."""
    plain = re.sub(r"\(.*\)", "", dataset).strip().lower().replace("-", "_")
    return name.startswith(plain)


def beside(run: Run) -> bool:
    """Whether the paper's values may stand beside those of a run.

    Its data must have the published fingerprint (a name proves nothing) and split, its candidates
    must be as many, its width must be near the published one.
    """
    setup = paper()["data"]["models"].get(run.config["backbone"].upper())
    if setup is None or run.fingerprint not in setup["fingerprints"].values():
        return False
    if run.config["data"]["split"] not in setup["splits"] or run.candidates != setup["candidates"]:
        return False
    return 1 / WIDER < run.width / setup["width"] < WIDER


def table1(backbone: str, name: str) -> dict[str, dict[str, tuple[float, float]]]:
    """{variant: {"A/ndcg@10": (mean, sd)}} of a backbone and pair; {} if nothing is published."""
    out = {}
    for row in paper()["table1"]["rows"]:
        if row["model"].lower() == backbone.lower() and same_data(row["dataset"], name):
            out[row["variant"]] = {
                f"{key[-1]}/{METRICS[key[:-2]]}": tuple(value)
                for key, value in row.items()
                if isinstance(value, list)
            }
    return out


def correlation(backbone: str, domain: str) -> dict | None:
    """The printed r of a backbone and domain, and how many points its figure shows."""
    values = paper()["correlation"]["values"].get(backbone.upper())
    return values[domain] if values else None
