"""Lists of recommended items: histories in, frames of raw ids out, some users at a time."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from oa_jax import files
from oa_jax.errors import UserError
from oa_jax.events.log import DOMAINS
from oa_jax.ranking.best import Best
from oa_jax.ranking.beyond import Beyond
from oa_jax.runs.names import Names
from oa_jax.serving.histories import Histories, polars

if TYPE_CHECKING:
    import polars as pl

FORMS = {".parquet": "sink_parquet", ".csv": "sink_csv", ".jsonl": "sink_ndjson"}
LISTS = "lists.json"  # of a workdir
EXPLAINED = 5  # items of a history that are named


class Model(Protocol):
    """What makes lists: a stored run, or an exported one.

    domains: "A", "B" or both, what it was evaluated on.  of: whose its lists are, "seed 0" or "mean
    of 5 seeds".  by: what they are ordered by, "score" or "mean_rank".  popularity, n_users: as of
    `names.popularity`.  vectors: (I, E) of the items, None without any.
    """

    names: Names
    domains: Sequence[str]
    of: str
    by: str
    popularity: np.ndarray
    n_users: int
    vectors: np.ndarray | None

    def room(self, n_users: int) -> int:
        """How many users of `n_users` it takes at a time."""

    def best(self, history_BxH, seen_BxH, domain_B, k: int) -> Best:
        """The lists of users, numpy arrays; `seen` are the items that do not count."""

    def check_explains(self) -> None:
        """Raise UserError where it cannot `explain`; an export has neither."""

    def explain(self, history_BxH, domain_B, items_BxK) -> tuple[np.ndarray, dict]:
        """(each score less that without X', (B, K); {place: how much the last token looked
        at each of the last S events, (B, S)})."""


def lists(
    model: Model,
    histories: Histories,
    k: int = 10,
    domain: str = "both",
    keep_seen: bool = False,
    explain: bool = False,
    beyond: dict[str, Beyond] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[pl.DataFrame]:
    """Frames of the users' lists, in their order, A before B; both: what the model ranks.

    Columns: user, domain, rank (1 … k), item, title where the set has any, and score or mean_rank.
    explain: also `due_to_update`, score with X' less score without, and of each place of GCA
    `looked_at_PLACE`: the items of the history that its attention looked at most, in JSON with
    their weights. beyond: of each domain, to which the lists are added.  say: is told at the end
    of lists whose items have one score: a model may know nothing of a user in a domain.

    Raises UserError for another domain, and a score that is not finite, naming the user.
    """
    if domain not in (*model.domains, "both"):
        ranked = " or ".join(model.domains)
        raise UserError(f"--domain={domain}: expected both or what the run ranks: {ranked}")
    domains = [DOMAINS.index(name) for name in model.domains if domain in (name, "both")]
    if explain:
        model.check_explains()
    size, k = model.room(len(histories)), min(k, max(model.names.n_items[d] for d in domains))
    items, alike = _by_id(model.names), dict.fromkeys(domains, 0)
    for begin in range(0, len(histories), size):
        end = min(begin + size, len(histories))
        history = histories.grid(begin, end, size)
        seen = history[:, :1] * 0 if keep_seen else history
        frames = []
        for d in domains:
            domain_B = np.full(size, d, np.int32)
            best = model.best(history, seen, domain_B, k)
            if not (finite := best.finite[: end - begin]).all():
                user = histories.users[begin + int(np.argmin(finite))]
                raise UserError(f"user {user}: a score is not finite: expected finite scores")
            alike[d] += _alike(best.items[: end - begin], best.scores[: end - begin])
            columns = {model.by: best.scores}
            if explain:
                because = model.explain(history, domain_B, best.items)
                columns |= _explained(items["item"], history, *because)
            frames.append(_frame(items, histories.users[begin:end], d, best, columns))
            if beyond is not None:
                _add(beyond[DOMAINS[d]], model, d, best.items[: end - begin], history)
        yield polars().concat(frames).sort("order", "domain", "rank").drop("order")
    for d, n in alike.items():
        if n:
            of = f"{n} of {len(histories)} lists of {DOMAINS[d]}"
            say(f"{of} have one score for all items, which stand in the order of the set")


def _alike(items, scores) -> int:
    """How many lists of two items or more have one score."""
    there = items > 0
    most = np.where(there, scores, -np.inf).max(1)
    least = np.where(there, scores, np.inf).min(1)
    return int(((there.sum(1) > 1) & (most == least)).sum())


def whole(model: Model, histories: Histories, *args: Any) -> pl.DataFrame:
    """All frames of `lists` as one; the histories' notes are warned about."""

    def say(line):
        warnings.warn(line, stacklevel=4)

    for line in histories.notes:
        say(line)
    return polars().concat(list(lists(model, histories, *args, say=say)))


def beyond_of(model: Model) -> dict[str, Beyond]:
    """Nothing added yet, of each domain that the model ranks."""
    out, n_a, vectors = {}, model.names.n_items[0], model.vectors
    for name in model.domains:
        items = slice(n_a) if name == "A" else slice(n_a, None)
        own = None if vectors is None else vectors[items]
        out[name] = Beyond(model.popularity[1:][items], model.n_users, own)
    return out


def _add(beyond, model, d, items, history):
    n_a, history = model.names.n_items[0], history[: len(items)]
    own = (history > 0) & ((history > n_a) == (d == 1))
    with np.errstate(invalid="ignore"):
        taken = (model.popularity[history] * own).sum(1) / own.sum(1)
    beyond.add(np.maximum(items - 1 - n_a * d, 0), items > 0, taken)


def _by_id(names: Names) -> pl.DataFrame:
    """A row for each joint id: `item`, its raw id, and `title` where the set has any."""
    pl, columns = polars(), {"item": [None, *names.raw]}
    if any(title is not None for title in names.title):
        columns["title"] = [None, *names.title]
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


def _frame(items, users, d, best, columns):
    """The lists (B, k) of some users in a domain, as rows. columns: {name: values (B, k)}."""
    pl, (n, k) = polars(), (len(users), best.items.shape[1])
    order = np.repeat(np.arange(n), k)
    lead = {"order": order, "user": pl.Series(users, dtype=pl.String).gather(order)}
    lead |= {"domain": pl.repeat(DOMAINS[d], n * k, eager=True)}
    lead |= {"rank": np.tile(np.arange(1, k + 1), n)}
    rest = {name: np.asarray(values)[:n].ravel() for name, values in columns.items()}
    parts = pl.DataFrame(lead), items[best.items[:n].ravel()], pl.DataFrame(rest)
    return pl.concat(parts, how="horizontal").filter(pl.col("item").is_not_null())


def _explained(raw, history, share, weights):
    """`due_to_update` (B, k), and of each place texts (B, k), the same for a user's items."""
    out, k = {"due_to_update": share}, share.shape[1]
    for place, weight_BxS in weights.items():
        shown, texts = history[:, -weight_BxS.shape[1] :], []
        weight_BxS = weight_BxS[:, -shown.shape[1] :]
        for row, weight in zip(shown, weight_BxS, strict=True):
            first = np.argsort(-weight, kind="stable")[:EXPLAINED]
            first = first[weight[first] > 0]
            pairs = zip(raw.gather(row[first]), weight[first].tolist(), strict=True)
            texts.append(json.dumps([[item, round(w, 4)] for item, w in pairs]))
        out[f"looked_at_{place}"] = np.repeat(np.array(texts, object)[:, None], k, 1)
    return out


def write(frames: Iterable[pl.DataFrame], out: str | os.PathLike) -> int:
    """Write frames as one file, by its ending, one of FORMS; -> how many rows.

    The file appears when it is whole: the parts lie in a folder beside it until then.
    """
    pl, file, n_rows = polars(), files.local(out, "--out"), 0
    with tempfile.TemporaryDirectory(".tmp", f"{file.name}.", file.parent, True) as folder:
        parts = pathlib.Path(folder)
        for number, frame in enumerate(frames):
            frame.write_parquet(parts / f"{number:08d}.parquet")
            n_rows += len(frame)
        whole = parts / file.name
        every = pl.scan_parquet(sorted(parts.glob("*.parquet")), glob=False)
        try:
            getattr(every, FORMS[file.suffix])(whole)
        except pl.exceptions.PolarsError as error:
            raise UserError(f"--out={out}: {' '.join(str(error).split())[:160]}") from None
        os.replace(whole, file)
    return n_rows


def keep(workdir: pathlib.Path, found: dict[str, Any]) -> None:
    """Write `found` into the workdir's lists.json, in place of what it said of the same lists."""
    key = found["of"], found["k"]
    with files.lock(workdir / ".lists.lock", wait=True):  # two may end at once
        others = [of for of in kept(workdir) if (of["of"], of["k"]) != key]
        files.write_json(workdir / LISTS, [*others, found])


def kept(workdir: pathlib.Path) -> list[dict]:
    """What `keep` has written; nothing without the file. Raises UserError where it holds others."""
    path, expected = workdir / LISTS, "figures of lists"
    found = files.read_json(path, expected, list) if path.exists() else []
    for number, of in enumerate(found, 1):
        where = f"{path}: entry {number}"
        files.check(where, of, {"of": str, "k": int, "figures": dict}, expected)
        files.check(where, of["figures"], dict.fromkeys(of["figures"], dict), "figures of a domain")
        for figures in of["figures"].values():
            files.check_numbers(where, figures)
    return found
