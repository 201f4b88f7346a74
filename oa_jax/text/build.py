"""Makes the tables of text embeddings that LLM4CDSR reads, from a prepared data set."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from oa_jax.data import store
from oa_jax.data.store import Place, Prepared
from oa_jax.data.texts import Say
from oa_jax.errors import UserError
from oa_jax.events import split as splits
from oa_jax.text import items, tables, vectors
from oa_jax.text.align import Alignment
from oa_jax.text.encoders import Files, open_encoder
from oa_jax.text.tables import METADATA, Tables, digest


@dataclasses.dataclass(frozen=True)
class Options:
    """encoder: see `encoders.open_encoder`; or a folder with the official code's tables.
    profiles: a file of imported profiles; None takes the mean of a user's history.
    split: its targets are held out of profiles; by default the published one, or leave_one_out.
    sees_validation: the mean contains the validation target, as the official one (quirk Q12).
    alignment: a change of the vectors, applied first. cache: folder for the encoded chunks of
    `chunk` texts each, None stores nothing. track: wraps the list of chunks to show progress."""

    encoder: str
    cache: pathlib.Path | None
    profiles: str | None = None
    global_width: int = 1024
    local_width: int = 128
    split: str = splits.OWN
    sees_validation: bool = False
    alignment: Alignment = Alignment()
    chunk: int = 1024
    track: Callable = iter


def write(prepared: Prepared, options: Options, out: Place, say: Say) -> Tables:
    """Make the tables in folder `out`; if it holds tables of the same inputs, return those.

    Raises UserError if `out` holds anything else, or if an input is wrong.
    """
    out, log = store.place(out), prepared.log
    store.check_times(log, options.split, "--split")
    split_name = splits.rule_of(log, options.split)
    split = splits.make_split(log, split_name, skip_short=True)
    texts = items.texts_of(prepared)
    official = tables.official_tables(options.encoder, log.n_items)
    encoder = open_encoder(options.encoder, log.n_items, options.chunk, options.track)
    if official:
        encoder = Files(official[2], {"kind": "official tables", "content": digest(*official)})
    users = None
    theirs = store.place(options.encoder) / tables.OFFICIAL_PROFILES
    if options.profiles or (official and theirs.exists()):
        users = tables.read_profiles(options.profiles or theirs, prepared.raw_users)
    own = "mean of the history" + ", Q12" * options.sees_validation
    inputs = {
        "log": log.fingerprint(),
        "texts": items.fingerprint(texts),
        "encoder": encoder.identity,
        "global_width": options.global_width,
        "local_width": options.local_width,
        "split": split_name,
        "profiles": own if users is None else f"imported {digest(users)}",
    }
    as_is = options.alignment.kind == "as_is"
    if not as_is:
        inputs["alignment"] = options.alignment.identity()
    if _are_there(out, inputs):
        say(f"{out} holds these tables: nothing to do")
    else:
        titles = (str(row.get("title", "")) for row in prepared.items)
        long = sum(len(title) > items.VALUE_LIMIT for title in titles)
        if long and not isinstance(encoder, Files):
            say(f'{long} titles of over {items.VALUE_LIMIT} characters become "unknown"')
        rows = encoder.vectors(texts, options.cache, say)
        # A zero row is how files say "no text".
        texts_known = np.array([text is not None for text in texts])
        known = rows.any(1) if isinstance(encoder, Files) else texts_known
        if not as_is:  # by what comes before all targets, whatever a profile may see
            rows = options.alignment.apply(rows, log, tables.history_of(split))
        n_history = np.full(log.n_users, -1, np.int32)  # of imported profiles nobody knows
        if users is None:
            n_history = tables.history_of(split, options.sees_validation)
            users = vectors.mean_profiles(log, n_history, rows, known)
        taken = official and as_is
        parts = (*official, None) if taken else _reduce(rows, log.n_items[0], options, say)
        facts = {"name": log.name, "log": inputs["log"], "inputs": inputs}
        facts["n_items_without_text"] = int(np.sum(~known))
        if not isinstance(encoder, Files):
            facts["items_digest"] = prepared.metadata["items_digest"]
        _save(out, parts, users, n_history, facts | {"encoder_width": rows.shape[1]})
    return tables.load_tables(out, log, split, options.sees_validation)


def _save(out, parts, users, n_history, facts) -> None:
    local_a, local_b, both, explained = parts
    facts |= {
        "encoder": facts["inputs"]["encoder"],
        "widths": {"global": both.shape[1], "local": local_a.shape[1]},
        "user_width": users.shape[1],
        "explained_variance": explained,
    }
    tables.save_tables(out, Tables(both, local_a, local_b, users, n_history, facts))


def _are_there(out, inputs) -> bool:
    """Whether `out` holds finished tables of these inputs; UserError where it holds others."""
    if (out / METADATA).exists():
        old = tables.read_metadata(out).get("inputs") or {}
        for field in {**inputs, **old}:
            if old.get(field) != inputs.get(field):
                found = f"{field}: there {old.get(field)}, asked for {inputs.get(field)}"
                expected = "expected an empty folder or the same inputs"
                raise UserError(f"--out={out}: holds tables of other inputs ({found}): {expected}")
        return True
    # Tables cut off by a kill are made again.
    there = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    strangers = [n for n in there if n not in tables.FILES.values() and not n.endswith(".tmp")]
    if strangers or out.is_file():
        found = f"holds {strangers[0]}" if strangers else "a file"
        raise UserError(f"--out={out}: {found}: expected an empty folder")
    return False


def _reduce(rows, n_a, options, say):
    """PCA of A, of B and of both together -> their tables, and the explained shares."""
    parts = {"A": rows[:n_a], "B": rows[n_a:], "global": rows}
    shape = f"{n_a} and {len(rows) - n_a} vectors of {rows.shape[1]} columns"
    most = min(vectors.widest(parts["A"]), vectors.widest(parts["B"]))
    local = vectors.capped("local_width", options.local_width, most, shape, say)
    both = vectors.capped("global_width", options.global_width, vectors.widest(rows), shape, say)
    widths = {"A": local, "B": local, "global": both}
    reduced = {name: vectors.pca(part, widths[name]) for name, part in parts.items()}
    explained = {name: round(reduced[name][1], 6) for name in ("global", "A", "B")}
    return *(table for table, _ in reduced.values()), explained
