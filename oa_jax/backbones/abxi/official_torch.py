"""The official ABXI code's model and training step, for bench/official_worker.py: needs PyTorch and
the code's checkout on the path, and not oa-jax."""

from argparse import Namespace

import torch


def build(sizes: dict, arrays: dict, device: torch.device):
    """(model, step(batch) -> loss), by the code's own `Trainer.train_batch`."""
    from models.ABXI import ABXI
    from trainer import Trainer

    torch.set_float32_matmul_precision("high")  # as its main does
    model = ABXI(Namespace(**sizes["args"])).to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=sizes["learning_rate"], weight_decay=sizes["weight_decay"]
    )
    trainer = Namespace(device=device, model=model, optimizer=optimizer)
    trainer.n_item_a = sizes["args"]["n_item_a"]

    def step(batch):
        optimizer.zero_grad()
        order = ("seq_x", "seq_a", "seq_b", "gt", "negatives")
        return sum(Trainer.train_batch(trainer, [batch[name] for name in order]))

    return model, step
