"""Fixtures of the official LLM4CDSR code."""

import numpy as np

from oa_jax.backbones import parity
from oa_jax.backbones.llm4cdsr import arrays, official
from oa_jax.backbones.llm4cdsr.fields import Quirks
from oa_jax.backbones.llm4cdsr.model import DOMAINS, Backbone
from oa_jax.backbones.parity import REAL, WHOLE
from oa_jax.events.split import leave_one_out

OF_ALL = ("", *DOMAINS)  # ends of the names of what belongs to stream x, to A and to B
SEQUENCES = ("seq", "seqA", "seqB")
TARGETS = ("posA", "posB")
SPLITS = {"valid": "val", "test": "test"}  # theirs -> ours


class Fixture(parity.Fixture):
    mark = "item_num_A"
    fields = dict.fromkeys(("num_heads", "item_num_A", "item_num_B"), WHOLE)
    fields |= dict.fromkeys(("alpha", "beta", "tau", "tau_reg", "lr"), REAL)
    heads, items = "num_heads", ("item_num_A", "item_num_B")
    sizing = {"pos_emb.weight": 2}
    hparams = {name: name for name in ("alpha", "beta", "tau", "tau_reg")}
    states, raw, splits = "features", ("raw/items", "ds_train/seq"), tuple(SPLITS)
    to_official = staticmethod(official.to_official)

    def model(self, weights):
        params, tables = official.from_official(weights, self.path)
        self.check_sizing(weights)
        sizes = official.sizes_of(weights, self.meta["num_heads"])
        return Backbone(self.n_items, sizes, tables, quirks=Quirks.of("official")), params

    def shapes(self):
        """Axes beside those of all: V values of a text embedding, U users."""
        shapes = {"param/item_emb_llm.weight": (sum(self.n_items) + 1, "V")}
        for d, n in zip(DOMAINS, self.n_items, strict=True):
            shapes |= {f"param/item_emb{d}.weight": (n + 1, "D"), f"train/reg_{d}": ("R", 1)}
        grid = (*SEQUENCES, *TARGETS, "neg", "negA", "negB", "domain_mask")
        shapes |= {f"train/{name}": "RL" for name in grid} | {"train/user_id": "R"}
        shapes |= {f"train/feats{s}": "RLD" for s in OF_ALL}
        shapes |= {f"train/loss_{part}": "" for part in ("A", "B", "reg", "user")}
        for split in SPLITS:
            shapes |= {f"{split}/{name}": "RL" for name in SEQUENCES}
            shapes |= {f"{split}/item_indices{s}": "RK" for s in OF_ALL}
            shapes |= {f"{split}/logits": "RK", f"{split}/rank0": "R"}
            shapes[f"{split}/target_domain"] = "R"
        return shapes

    def largest_id(self, name):
        group, _, part = name.partition("/")
        if part == "user_id":
            return len(self.backbone.tables.users) - 1
        is_ids = part.startswith(("seq", "pos", "neg", "item_", "reg"))
        if group not in ("train", *SPLITS) or not is_ids:
            return None
        local = part[-1] in DOMAINS and not part.startswith("reg")
        return self.n_items[DOMAINS.index(part[-1])] if local else sum(self.n_items)

    def raw_items(self):
        return self.arrays["raw/items"] + self.n_items[0] * (self.arrays["raw/domains"] == 1)

    def built(self, log):
        split, length = leave_one_out(log, skip_short=True), self.backbone.config.length
        built = {"ds_train": arrays.training_arrays(log, split, length)}
        for theirs, ours in SPLITS.items():
            built[theirs] = arrays.evaluation_arrays(log, split, ours, length)
        names = {"ds_train": (*SEQUENCES, *TARGETS, "pos", "domain_mask")}
        return {
            f"{which}/{name}": of[f"{name[:-1]}_{name[-1]}" if name[-1] in DOMAINS else name]
            for which, of in built.items()
            for name in names.get(which, SEQUENCES)
        }

    def batch(self):
        of = {k.removeprefix("train/"): v for k, v in self.arrays.items() if k[:6] == "train/"}
        rows, length = of["seq"].shape
        batch = {"seq": of["seq"], "at_x": np.flatnonzero(of["seq"])}
        for d, name in enumerate(DOMAINS):
            at = np.flatnonzero(of[f"seq{name}"])
            # The k-th token of the domain goes with the k-th position of its mask, row by row.
            paired, pair = np.flatnonzero(of["domain_mask"] == d), np.full(rows * length, -1)
            pair[at] = paired % length
            batch |= {f"{part}_{name}": of[f"{part}{name}"] for part in ("seq", "pos")}
            batch |= {f"at_{name}": at, f"pair_{name}": pair.reshape(rows, length)}
            batch[f"time_{name}"] = np.full((rows, length), -1)  # for GCA, absent here
            batch[f"neg_{name}"] = of[f"neg{name}"].ravel()[at]
            batch[f"neg_x_{name}"] = of["neg"].ravel()[paired]
            batch[f"reg_{name}"] = of[f"reg_{name}"][:, 0]
        batch |= {"profile": of["user_id"], "real": np.ones(rows, bool)}
        return batch | {"n_users": np.float32(rows)}

    def hidden(self, batch):
        grid = {k: v for k, v in batch.items() if not k.startswith("at_")}
        variables = {"params": self.params["net"]}
        ours, _ = self.backbone.net.apply(variables, self.backbone.tables, grid)
        expected = {s or "x": self.arrays[f"train/feats{s}"] for s in OF_ALL}
        return {s: (np.reshape(ours[s], v.shape), v) for s, v in expected.items()}

    def evaluation(self, split):
        of = {k.split("/")[1]: v for k, v in self.arrays.items() if k.startswith(f"{split}/")}
        rows = {"seq": of["seq"], "domain": of["target_domain"]}
        for d in DOMAINS:
            rows |= {f"seq_{d}": of[f"seq{d}"], f"time_{d}": np.zeros_like(of["seq"])}
        in_b, local = of["target_domain"][:, None] == 1, of["item_indicesB"] + self.n_items[0]
        own = np.where(in_b, local, of["item_indicesA"])
        candidates = np.stack([of["item_indices"], own], 1)
        return rows, candidates, {"scores": of["logits"], "ranks": of["rank0"] + 1}
