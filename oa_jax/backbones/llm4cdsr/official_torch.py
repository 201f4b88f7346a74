"""The official LLM4CDSR code's model and training step, for bench/official_worker.py: needs PyTorch
and the code's checkout on the path, and not oa-jax."""

import pathlib
import pickle
from argparse import Namespace

import torch


def build(sizes: dict, arrays: dict, device: torch.device):
    """(model, step(batch) -> loss), without the anomaly detection that its main turns on."""
    from models.LLMCDSR import LLM4CDSR

    folder = pathlib.Path("data", sizes["args"]["dataset"], "handled")  # where it reads its tables
    folder.mkdir(parents=True)
    for name, table in arrays.items():
        if name.startswith("table/"):
            (folder / f"{name[6:]}.pkl").write_bytes(pickle.dumps(table))
    n_items = {"0": sizes["n_items"][0], "1": sizes["n_items"][1]}
    model = LLM4CDSR(sizes["n_users"], n_items, device, Namespace(**sizes["args"]))
    model = model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=sizes["learning_rate"])

    def step(batch):
        loss = model(**{name: values.to(device) for name, values in batch.items()})
        loss.backward()
        value = loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return value

    return model, step
