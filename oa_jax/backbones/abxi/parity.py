"""Fixtures of the official ABXI code."""

import numpy as np

from oa_jax.backbones import parity
from oa_jax.backbones.abxi import arrays, official
from oa_jax.backbones.abxi.fields import Quirks
from oa_jax.backbones.abxi.model import Backbone
from oa_jax.backbones.parity import PAIR, REAL, WHOLE
from oa_jax.events.split import leave_one_out

STREAMS = ("seq_x", "seq_a", "seq_b")
ITEM_IDS = (*STREAMS, "gt", "gt_neg", "gt_mtc", "flat")
# Axes: R rows, L length, D width, N negatives, K candidates = negatives + 1.
SEQUENCES = dict.fromkeys(STREAMS, "RL")
EVALUATION = SEQUENCES | {"gt": ("R", 1), "gt_mtc": "RN", "ranks": "R", "h": "RD", "logits": "RK"}
TRAINING = SEQUENCES | {"gt": "RL", "gt_neg": "RLN", "h": "RLD", "loss_a": "", "loss_b": ""}
SHAPES = {"train": TRAINING, "val": EVALUATION, "test": EVALUATION}


class Fixture(parity.Fixture):
    mark = "n_item_a"
    fields = dict.fromkeys(("n_head", "n_item_a", "n_item_b"), WHOLE)
    fields |= dict.fromkeys(("temp", "lr", "weight_decay", "eps"), REAL) | {"betas": PAIR}
    heads, items = "n_head", ("n_item_a", "n_item_b")
    sizing = dict.fromkeys(("ei.weight", "ffn.fc_1.weight", "dlora_x.mat_A", "ilora_a.mat_A"), 1)
    sizing |= {"ep.weight": 2}  # position 0 is padding
    hparams = {"temperature": "temp"}
    states, raw, splits = "hidden states", ("raw/flat",), ("val", "test")
    to_official = staticmethod(official.to_official)

    def model(self, weights):
        params = official.from_official(weights, self.path)
        self.check_sizing(weights)
        sizes = official.sizes_of(weights, self.meta["n_head"])
        return Backbone(self.n_items, sizes, quirks=Quirks.of("official")), params

    def shapes(self):
        return {f"{group}/{k}": axes for group, of in SHAPES.items() for k, axes in of.items()}

    def largest_id(self, name):
        return sum(self.n_items) if name.split("/")[-1] in ITEM_IDS else None

    def built(self, log):
        split, length = leave_one_out(log), self.backbone.config.length
        built = {"train": arrays.training_arrays(log, split, length)}
        for which in self.splits:
            built[which] = arrays.evaluation_arrays(log, split, which, length)
        return {f"{which}/{k}": built[which][k] for which in built for k in STREAMS}

    def batch(self):
        gt = self.arrays["train/gt"]
        flat, n_a = gt.ravel(), self.n_items[0]
        at = np.flatnonzero((flat > 0) & (flat <= n_a)), np.flatnonzero(flat > n_a)
        negatives = self.arrays["train/gt_neg"].reshape(flat.size, -1)[np.concatenate(at)]
        batch = {name: self.arrays[f"train/{name}"] for name in (*STREAMS, "gt")}
        batch |= {"at_A": at[0], "at_B": at[1], "negatives": negatives}
        return batch | {"n_users": np.float32(len(gt))}

    def hidden(self, batch):
        ours, _ = self.backbone.net.apply({"params": self.params}, batch)
        expected = self.arrays["train/h"].reshape(-1, self.arrays["train/h"].shape[-1])
        return {d: (ours[d], expected[batch[f"at_{d}"]]) for d in "AB"}

    def evaluation(self, split):
        of = {name: self.arrays[f"{split}/{name}"] for name in EVALUATION}
        rows = {name: of[name] for name in STREAMS}
        rows["until_a"] = rows["until_b"] = np.zeros_like(of["seq_x"])  # for GCA, absent here
        rows["domain"] = (of["gt"][:, 0] > self.n_items[0]).astype(np.int8)
        candidates = np.concatenate([of["gt"], of["gt_mtc"]], 1)
        expected = {"hidden states": of["h"], "scores": of["logits"], "ranks": of["ranks"]}
        return rows, candidates, expected
