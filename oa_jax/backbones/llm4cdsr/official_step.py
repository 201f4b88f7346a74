"""Training batches as the official LLM4CDSR code takes them, for bench/official.py
(Applied-Machine-Learning-Lab/LLM4CDSR-pytorch)."""

import numpy as np

from oa_jax.backbones.llm4cdsr.arrays import training_arrays
from oa_jax.backbones.llm4cdsr.model import Tables
from oa_jax.backbones.llm4cdsr.task import LLM4CDSRTask
from oa_jax.backbones.parity import unpacked
from oa_jax.configuration import Config
from oa_jax.events.log import DOMAINS

FILES = ("models/LLMCDSR.py", "models/SASRec.py")
NEEDED = {"model.global_llm": True, "model.local_llm": True, "model.freeze": True}


def inputs(config: Config, task: LLM4CDSRTask, tables: Tables, batches: list) -> tuple[dict, dict]:
    """(sizes, arrays): the inputs of its training rows, (B, L) and (B,), of batch i as NAME/i, and
    its tables as table/NAME.

    batches: [(rows (B,), batch of the task)].
    """
    out, model = {}, config.model
    # Of the task's split, which has fewer users than the data's where `data.users` says so.
    whole = training_arrays(task.log, task.split, task.length)
    for i, (rows_B, batch) in enumerate(batches):
        shape = batch["seq"].shape
        one = {"seq": batch["seq"], "neg": np.zeros(shape, np.int64), "user_id": batch["profile"]}
        for name, empty in (("pos", 0), ("domain_mask", -1)):
            values = whole[name][np.minimum(rows_B, task.n_users - 1)]
            one[name] = np.where(batch["real"][:, None], values, empty)
        one |= {"target_domain": np.zeros(len(rows_B)), "positions": _positions(batch["seq"])}
        for d in DOMAINS:
            at, pair = batch[f"at_{d}"], batch[f"pair_{d}"]
            joint = unpacked(batch[f"neg_x_{d}"], at, shape)
            row, column = np.nonzero(pair >= 0)
            one["neg"][row, pair[row, column]] = joint[row, column]
            one |= {f"seq{d}": batch[f"seq_{d}"], f"pos{d}": batch[f"pos_{d}"]}
            one[f"neg{d}"] = unpacked(batch[f"neg_{d}"], at, shape)
            one[f"positions{d}"] = _positions(batch[f"seq_{d}"])
            one[f"reg_{d}"] = batch[f"reg_{d}"][:, None]
        out |= {f"{name}/{i}": values for name, values in one.items()}
    named = {"items_all": tables.items[1:], "profiles": tables.users}
    named |= {f"items_{d}_pca128": getattr(tables, f"local_{d}")[1:] for d in DOMAINS}
    out |= {f"table/{name}": np.asarray(table) for name, table in named.items()}
    args = {"dataset": "set", "llm_emb_file": "items", "user_emb_file": "profiles"}
    args |= {"hidden_size": model.d_embed, "max_len": model.length, "trm_num": model.blocks}
    args |= {"num_heads": model.heads, "dropout_rate": model.dropout}
    args |= {"global_emb": True, "local_emb": True, "freeze_emb": True}
    args |= {name: getattr(model, name) for name in ("alpha", "beta", "tau", "tau_reg")}
    return {"args": args, "n_items": task.log.n_items, "n_users": len(tables.users)}, out


def _positions(seq_BxL):
    real = seq_BxL != 0
    return real.cumsum(1) * real
