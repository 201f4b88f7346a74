"""The model card of an export: README.md."""

from typing import Any

from oa_jax.sheets import Sheet

METRICS = ("ndcg@10", "hr@10", "mrr")
LOADING = '''import json

import numpy as np
from jax import export


def tensors(path):
    """{name: array} of a safetensors file: its length, its head in JSON, its bytes."""
    raw = open(path, "rb").read()
    begin = 8 + int.from_bytes(raw[:8], "little")
    head, kinds = json.loads(raw[8:begin]), {"F32": "<f4", "I32": "<i4", "BOOL": "?"}
    head.pop("__metadata__", None)
    out = {}
    for name, of in head.items():
        first, last = (begin + offset for offset in of["data_offsets"])
        out[name] = np.frombuffer(raw[first:last], kinds[of["dtype"]]).reshape(of["shape"])
    return out


n_a, n_b = json.load(open("model.json"))["n_items"]
scorer = export.deserialize(bytearray(open("scorer.jaxexport", "rb").read()))
values = tensors("parameters.safetensors") | tensors("scorer.safetensors")


def best(history, domain, k=10):
    """Ids and scores of the k best items of domain "A" or "B" that the history has not."""
    ids = np.arange(1, n_a + 1) if domain == "A" else np.arange(n_a + 1, n_a + n_b + 1)
    ids = ids[~np.isin(ids, history)].astype(np.int32)
    asked = np.array([history], np.int32), np.array([domain == "B"], np.int32)
    scores = np.asarray(scorer.call(values, *asked, ids))[0]
    first = np.argsort(-scores, kind="stable")[:k]
    return ids[first], scores[first]
'''
CARD = """---
library_name: oa-jax
license: {licence}
data_license: {data_licence}
tags: [recommendation, sequential-recommendation, cross-domain, jax]
---

# {label} on {data}

Given what a user took in two domains, A and B, in order, it scores the items that the user may take
next in {domains}. Made by oa-jax {version}.

{facts}
{metrics}
## Lists with oa-jax

```python
import oa_jax as oa

model = oa.load_export(".")
events = {{"user": ["u", "u"], "item": ["{example[0]}", "{example[1]}"], "domain": ["A", "B"]}}
model.recommend(events | {{"time": [1, 2]}}, k=10)
```

To go on training from it, on these data or others: `--config.train.init_from=FOLDER`.

## Lists without oa-jax

With jax, numpy and flatbuffers, which `jax.export` reads its files with. `items.parquet` has the
raw id and the domain of every item id: 1 to {n_a} are domain A, the next {n_b} domain B.

```python
{loading}```

The scorer takes histories (b, h) of item ids, the oldest first, left-padded with 0, domains (b,), 0
or 1, and item ids (n,), and gives scores (b, n); b, h and n are free. It runs on a CPU, a CUDA GPU
or a TPU.

## Limits

Scores compare items of one domain for one user, and nothing else. Lists follow the data that it was
trained on, popular items first among them.

Licence of the model: {licence}; of the data: {data_licence}.
"""


def text(about: dict[str, Any], licence: str, data_licence: str) -> str:
    """The card of the model that model.json describes."""
    (n_a, n_b), found = about["n_items"], about.get("metrics") or {}
    of_data = f"{about['n_users']:,} users, {n_a:,} + {n_b:,} items, {about['n_events']:,} events"
    facts = {
        "protocol": about["protocol"],
        "parameters": f"{about['n_parameters']:,}",
        "data": of_data,
        "fingerprint of the data": about["fingerprint"],
        "seed": str(about["seed"]),
    }
    if "best_epoch" in found:
        facts["epoch"] = str(found["best_epoch"])
    return CARD.format(
        label=about["label"],
        data=about["data"],
        version=about["oa-jax"],
        licence=licence,
        data_licence=data_licence,
        loading=LOADING,
        n_a=n_a,
        n_b=n_b,
        example=about["example"],
        domains=" or ".join(about["domains"]),
        facts=Sheet("", ["", ""], list(facts.items()), words=2).markdown(),
        metrics=_metrics(found),
    )


def _metrics(found):
    """Test metrics by domain that has any and ranking; nothing of a run that has not ended."""
    rankings = [name.split("/")[-1] for name in found if name.startswith("test/A/mrr/")]
    rows = [
        [domain, ranking, *(f"{found[f'test/{domain}/{m}/{ranking}']:.4f}" for m in METRICS)]
        for domain in "AB"
        for ranking in rankings
        if found[f"test/{domain}/mrr/{ranking}"] is not None
    ]
    header = ["domain", "ranking", *(name.upper() for name in METRICS)]
    return Sheet("Test", header, rows, words=2).markdown() if rows else ""
