"""Training steps of the official PyTorch code of ABXI, in a process that needs PyTorch and its
checkout, and not oa-jax:

    python official_abxi.py CHECKOUT BATCHES.npz

The file holds what `oa_jax.bench.official` wrote: `sizes`, and the arrays of every batch. One line
of JSON goes to standard output when the model stands, and one for each line of standard input:
the seconds of a step on every batch, and the most memory so far.
"""

import json
import resource
import sys
import time
from argparse import Namespace

import numpy as np
import torch

BATCH = ("seq_x", "seq_a", "seq_b", "gt", "negatives")


def main(checkout, path):
    sys.path.insert(0, checkout)
    from models.ABXI import ABXI
    from trainer import Trainer

    torch.set_float32_matmul_precision("high")  # as the code's own main does
    torch.manual_seed(0)
    with np.load(path) as file:
        sizes = json.loads(str(file["sizes"]))
        batches = [[torch.from_numpy(file[f"{name}/{i}"]) for name in BATCH]
                   for i in range(sizes["n_batches"])]  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = ABXI(Namespace(**sizes["args"])).to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=sizes["learning_rate"], weight_decay=sizes["weight_decay"]
    )
    trainer = Namespace(
        device=device, model=model, optimizer=optimizer, n_item_a=sizes["args"]["n_item_a"]
    )
    on_cpu = f"{torch.get_num_threads()} CPU threads"
    name = torch.cuda.get_device_name() if device.type == "cuda" else on_cpu
    say({"torch": torch.__version__, "device": name, "n_parameters": parameters(model)})
    for _ in sys.stdin:
        begin = time.perf_counter()
        for batch in batches:
            optimizer.zero_grad()
            loss = sum(Trainer.train_batch(trainer, batch))  # reads the loss, so it has ended
        say({"seconds": time.perf_counter() - begin, "loss": loss, "peak_bytes": peak(device)})


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


def peak(device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def say(line) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
