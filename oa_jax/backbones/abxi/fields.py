"""ABXI's groups of the configuration; defaults are the official ones (Beauty-Elec)."""

import dataclasses

from oa_jax import configuration
from oa_jax.fields import flag, one_of, quirk, real, whole


@dataclasses.dataclass(frozen=True)
class Model(configuration.Model):
    """One block by design: the official code has no field for its depth."""

    d_embed: int = whole(256, "width D")
    heads: int = whole(2, "attention heads, a divisor of d_embed")
    d_ffn: int = whole(680, "width of the feed-forward layer")
    rank_domain: int = whole(64, "rank of the domain LoRA")
    rank_invariant: int = whole(64, "rank of the invariant LoRA")
    length: int = whole(47, "most recent events kept of a stream")
    dropout: float = real(0.5, "dropout rate", 0, 0.999)
    temperature: float = real(0.75, "temperature of the softmax over items", above=True)
    tied: bool = flag(True, "one table of items for inputs and outputs")
    blocks: int = one_of(1, "ABXI has one block by its design", 1)
    # Its attention has no dropout, so that the form decides no draw.
    attention: str = one_of("auto", "padded rows, or chunks", "auto", "rows", "chunks", free=True)

    @property
    def places(self) -> tuple[int, ...]:
        """After the embedding, after attention, after the feed-forward layer and domain LoRA."""
        return (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Quirks(configuration.Quirks):
    q1_pool_b_from_last_a: bool | None = quirk("B's candidates begin with A's last item")
    q3_attend_to_padding: bool | None = quirk("padded positions are attended to")
    q6_positions_from_end: bool | None = quirk("positions count from the end", corrected=True)
    q10_ties_favour_target: bool | None = quirk("the target comes first among equal scores")
    q19_mean_over_all_users: bool | None = quirk("a domain's loss is divided by all users")


@dataclasses.dataclass(frozen=True)
class Config(configuration.Config):
    backbone: str = "abxi"
    quirks: Quirks = dataclasses.field(default_factory=Quirks)
    model: Model = dataclasses.field(default_factory=Model)
