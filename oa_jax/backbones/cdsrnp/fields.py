"""CDSRNP's groups of the configuration. Its code is not public: what is open is a field."""

import dataclasses

from oa_jax import configuration
from oa_jax.errors import UserError
from oa_jax.fields import field, flag, is_int, one_of, real, whole


def _are_widths(value) -> bool:
    return isinstance(value, tuple) and value != () and all(is_int(v) and v > 0 for v in value)


@dataclasses.dataclass(frozen=True)
class Model(configuration.Model):
    d_embed: int = whole(128, "width D")
    heads: int = whole(4, "attention heads, a divisor of d_embed")
    length: int = whole(50, "most recent events kept of a domain's stream")
    merged_length: int = whole(100, "most recent events kept of the merged stream")
    dropout: float = real(0.2, "dropout rate", 0, 0.999)
    neural_process: bool = flag(True, "the neural process; False: no support set, no latent z")
    d_latent: int = whole(0, "width of z; 0: half of d_embed", 0)
    support: int = whole(128, "rows of overlapped users drawn beside each batch")
    eval_support: int = whole(2048, "rows of the fixed support set at test; 0: all", 0)
    exclude_query: bool = flag(True, "leave users of the batch out of its support set")
    targets: str = one_of("each_domain", "a user's training rows", "each_domain", "last", "every")
    pair_negative: bool = flag(True, "the encoder also sees each user with a negative item")
    latents: str = one_of("per_direction", "z of A to B, of B to A", "per_direction", "shared")
    score_state: str = one_of("last", "state of a stream that scores", "last", "mean")
    np_state: str = one_of("mean", "state of a stream that the encoder reads", "last", "mean")
    interest: str = one_of("film", "how a candidate meets the history", "film", "attention", "none")
    decoder_widths: tuple[int, ...] = field(
        (128, 32), _are_widths, "a list of whole numbers of at least 1", "widths of the decoder"
    )
    film_from_one: bool = flag(True, "layers are scaled by 1 + tanh(z); False: by tanh(z)")
    kl_weight: float = real(0.01, "weight of the KL divergence")
    kl_warmup: int = whole(10, "epochs over which the weight grows from 0", 0)
    eval_latent: str = one_of("mean", "z in evaluation: its mean, or a draw", "mean", "draw")

    def __post_init__(self):
        if self.merged_length < self.length:  # whose latest steps stand in for an empty stream
            raise UserError(
                f"merged_length={self.merged_length}: expected at least length={self.length}"
            )


@dataclasses.dataclass(frozen=True)
class Train(configuration.SteadyTrain):
    max_epochs: int = whole(50, "epochs at most; may grow with --extend")
    learning_rate: float = real(5e-4, "learning rate of Adam, constant", above=True)
    stop_patience: int = whole(4, "epochs without improvement before a seed stops", 0)
    selection: str = one_of(
        "ndcg@10_sum", "picks the best epoch", "mrr_sum", "ndcg@10", "ndcg@10_sum"
    )
    n_negatives: int = one_of(1, "sampled negatives of a row", 1)


@dataclasses.dataclass(frozen=True)
class Evaluate(configuration.Evaluate):
    # Every candidate attends to the history: blocks of (users, items, steps).
    block_users: int = whole(64, "users ranked at a time", free=True)
    block_items: int = whole(1024, "items scored at a time", free=True)
    test_items: bool = flag(False, "also rank among the items of tested sequences (`test999`)")


@dataclasses.dataclass(frozen=True)
class Config(configuration.Config):
    backbone: str = "cdsrnp"
    protocol: str = one_of("corrected", "corrected: no official code is public", "corrected")
    model: Model = dataclasses.field(default_factory=Model)
    train: Train = dataclasses.field(default_factory=Train)
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)
