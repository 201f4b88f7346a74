"""SASRec's groups of the configuration; sizes are the paper's (arXiv 1808.09781)."""

import dataclasses

from oa_jax import configuration
from oa_jax.events.log import DOMAINS as SINGLE
from oa_jax.fields import flag, one_of, whole


@dataclasses.dataclass(frozen=True)
class Model(configuration.Model):
    d_embed: int = whole(50, "width D")
    stream: str = one_of("merged", "the events it learns from", "merged", "apart", *SINGLE)
    loss: str = one_of("bce", "training loss of a token", "bce", "sampled", "full")
    tied: bool = flag(True, "one table of items for inputs and outputs")

    @property
    def places(self) -> tuple[int, ...]:
        """After the embedding and after each block, where there is a stream to look at."""
        return super().places if self.stream == "merged" else ()


@dataclasses.dataclass(frozen=True)
class Train(configuration.SteadyTrain):
    batch_size: int = whole(128, "users in a batch")
    max_epochs: int = whole(200, "epochs at most; may grow with --extend")
    stop_patience: int = whole(19, "epochs without improvement before a seed stops", 0)
    n_negatives: int = whole(1, "sampled negatives of a token, of its target's domain")


@dataclasses.dataclass(frozen=True)
class Config(configuration.Config):
    backbone: str = "sasrec"
    protocol: str = one_of("corrected", "corrected: reproduces no official code", "corrected")
    model: Model = dataclasses.field(default_factory=Model)
    train: Train = dataclasses.field(default_factory=Train)
