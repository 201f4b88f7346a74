"""Training steps of an official PyTorch code, in a process that needs PyTorch and the code's
checkout, and not oa-jax:

    python official_worker.py abxi|llm4cdsr CHECKOUT BATCHES.npz

The file holds what `oa_jax.bench.official` wrote: `sizes`, a line of JSON, and arrays, those of
batch i as NAME/i. One line of JSON goes to standard output when the model stands, and one for each
line of standard input: the seconds of a step on every batch, and the most memory so far.
"""

import json
import os
import pathlib
import pickle
import resource
import sys
import tempfile
import time
from argparse import Namespace

import numpy as np
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def abxi(sizes, arrays):
    """(model, step(batch) -> loss), by the code's own `Trainer.train_batch`."""
    from models.ABXI import ABXI
    from trainer import Trainer

    torch.set_float32_matmul_precision("high")  # as its main does
    model = ABXI(Namespace(**sizes["args"])).to(DEVICE).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=sizes["learning_rate"], weight_decay=sizes["weight_decay"]
    )
    trainer = Namespace(
        device=DEVICE, model=model, optimizer=optimizer, n_item_a=sizes["args"]["n_item_a"]
    )

    def step(batch):
        optimizer.zero_grad()
        order = ("seq_x", "seq_a", "seq_b", "gt", "negatives")
        return sum(Trainer.train_batch(trainer, [batch[name] for name in order]))

    return model, step


def llm4cdsr(sizes, arrays):
    """(model, step(batch) -> loss), without the anomaly detection that its main turns on."""
    from models.LLMCDSR import LLM4CDSR

    folder = pathlib.Path("data", sizes["args"]["dataset"], "handled")  # where it reads its tables
    folder.mkdir(parents=True)
    for name, table in arrays.items():
        if name.startswith("table/"):
            (folder / f"{name[6:]}.pkl").write_bytes(pickle.dumps(table))
    n_items = {"0": sizes["n_items"][0], "1": sizes["n_items"][1]}
    model = LLM4CDSR(sizes["n_users"], n_items, DEVICE, Namespace(**sizes["args"]))
    model = model.to(DEVICE).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=sizes["learning_rate"])

    def step(batch):
        loss = model(**{name: values.to(DEVICE) for name, values in batch.items()})
        loss.backward()
        value = loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return value

    return model, step


def main(name, checkout, path):
    sys.path.insert(0, checkout)
    torch.manual_seed(0)
    with np.load(path) as file:
        arrays = dict(file)
    sizes = json.loads(str(arrays.pop("sizes")))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        model, step = {"abxi": abxi, "llm4cdsr": llm4cdsr}[name](sizes, arrays)
        os.chdir("/")
    batches = [of_batch(arrays, i) for i in range(sizes["n_batches"])]
    on_cpu = f"{torch.get_num_threads()} CPU threads"
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else on_cpu
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say({"torch": torch.__version__, "device": device, "n_parameters": trained})
    for _ in sys.stdin:
        begin = time.perf_counter()
        loss = [step(batch) for batch in batches][-1]
        wait()
        say({"seconds": time.perf_counter() - begin, "loss": loss, "peak_bytes": peak()})


def of_batch(arrays, number):
    end = f"/{number}"
    named = ((name, values) for name, values in arrays.items() if name.endswith(end))
    return {name.removesuffix(end): torch.from_numpy(values) for name, values in named}


def wait():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak() -> int:
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def say(line) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
