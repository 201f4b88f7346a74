"""Training batches as the official ABXI code (DiMarzioBian/ABXI) takes them; bench/official.py."""

import numpy as np

from oa_jax.backbones.abxi.task import STREAMS, ABXITask
from oa_jax.backbones.parity import unpacked
from oa_jax.configuration import Config

FILES = ("trainer.py", "models/ABXI.py")
NEEDED = {"train.negatives": "per_position"}


def inputs(config: Config, task: ABXITask, tables: None, batches: list) -> tuple[dict, dict]:
    """(sizes, arrays): seq_x, seq_a, seq_b, gt (B, L), negatives (B, L, 2n) of batch i as NAME/i.

    batches: [(rows (B,), batch of the task)].
    """
    out = {}
    for i, (_, batch) in enumerate(batches):
        out |= {f"{name}/{i}": batch[name] for name in STREAMS}
        at = np.concatenate([batch["at_A"], batch["at_B"]])
        out[f"negatives/{i}"] = unpacked(batch["negatives"], at, batch["gt"].shape, empty=1)
    model, (n_a, n_b) = config.model, task.log.n_items
    args = {"n_item": n_a + n_b, "n_item_a": n_a, "bs": task.batch_size, "n_neg": task.n_negatives}
    args |= {"len_trim": model.length, "n_head": model.heads, "d_embed": model.d_embed}
    args |= {"temp": model.temperature, "dropout": model.dropout}
    args |= {"rd": model.rank_domain, "ri": model.rank_invariant}
    return {"args": args, "weight_decay": config.train.weight_decay}, out
