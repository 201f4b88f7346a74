"""The data sets of `sets.toml` by name; finds their files in a folder, and fetches them.

The files of a source lie together in one folder, at most three levels below the given one, each
plain or with `.gz` at the end of its name. Hashes are of the unpacked content. A file that differs
from the published one is used all the same; the metadata say so.
"""

import dataclasses
import hashlib
import http.client
import os
import pathlib
import tomllib
import urllib.request
from collections.abc import Iterator

from oa_jax.data import store
from oa_jax.data.store import Place
from oa_jax.data.texts import Reading
from oa_jax.errors import UserError

DEPTH = 3
TIMEOUT_S = 20
BLOCK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class File:
    """name: without .gz. page: one that links the file. url: the file itself. None: not known."""

    name: str
    page: str
    size: str | None = None
    url: str | None = None
    sha256: str | None = None
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """Files, and the function that makes events of them, as "module.function" of this package."""

    kind: str
    build: str
    files: tuple[File, ...]
    options: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """protocol: gives filters and split. domains: names of A and B. quirks: those in force."""

    name: str
    protocol: str
    domains: tuple[str, str]
    sources: tuple[Source, ...]
    quirks: dict = dataclasses.field(default_factory=dict)


def _sets():
    facts = tomllib.loads(pathlib.Path(__file__).with_name("sets.toml").read_text("utf-8"))

    def file(text):  # "place/name", with "?" at its end where it is optional
        place, name = text.removesuffix("?").split("/")
        known = {"url": None, "files": {}} | facts["places"][place]
        url = known["url"] and known["url"].format(name=name)
        more = known["files"].get(name, {})
        return File(name, known["page"], url=url, optional=text.endswith("?"), **more)

    def source(domains, use, of="", **options):
        words = {"A": domains[0], "B": domains[1], "of": of}
        files = tuple(file(text.format(**words)) for text in facts["sources"][use]["files"])
        return Source(**facts["sources"][use] | {"files": files, "options": options})

    for name, entry in facts["sets"].items():
        domains = tuple(entry["domains"])
        sources = tuple(source(domains, **one) for one in entry["sources"])
        yield DataSet(name, **entry | {"domains": domains, "sources": sources})


SETS = {data_set.name: data_set for data_set in _sets()}


def find(source: Source, raw_dir: Place) -> list[pathlib.Path | None] | None:
    """Paths of a source's files in the first folder at or below raw_dir that holds all of them.

    An optional file that is missing is None. Returns None if no folder has all other files.
    """
    for folder in _folders(raw_dir):
        if not _lacking(source, folder):
            return [plain_or_packed(folder / file.name) for file in source.files]
    return None


def missing(source: Source, raw_dir: Place | None) -> list[File]:
    """The files of a source that are missing in the folder that has most of them."""
    folders = _folders(raw_dir) if raw_dir else ()
    everything = [file for file in source.files if not file.optional]
    return min([everything, *(_lacking(source, folder) for folder in folders)], key=len)


def what_is_missing(data_set: DataSet, raw_dir: Place | None) -> str:
    """One line: the source with the fewest missing files, its first missing file and where to get
    it; or that a source is complete, so the set can be prepared."""
    lacking = {source.kind: missing(source, raw_dir) for source in data_set.sources}
    kind, nearest = min(lacking.items(), key=lambda pair: len(pair[1]))
    if not nearest:
        return f"not prepared: found the files of {kind} below {raw_dir}"
    file, *more = nearest
    found = f"found no {file.name}" + (f" ({file.size})" if file.size else "")
    found += f" and {len(more)} more" if more else ""
    where = f"{found} in a folder below {raw_dir}, plain or .gz"
    where = where if raw_dir else f"no directory was given: {found}"
    return f"{where}: expected the files of {' or '.join(lacking)}; see {file.page}"


def _lacking(source, folder):
    return [f for f in source.files if not (f.optional or plain_or_packed(folder / f.name))]


def _folders(root) -> Iterator[pathlib.Path]:
    """The folder and those below it, in the order of their names; hidden ones left out."""
    root = store.place(root)
    for path, inner, _ in os.walk(root, followlinks=True):
        yield pathlib.Path(path)
        deepest = len(pathlib.Path(path).relative_to(root).parts) == DEPTH
        inner[:] = [] if deepest else sorted(n for n in inner if not n.startswith("."))


def plain_or_packed(path: pathlib.Path) -> pathlib.Path | None:
    """The path if that file exists, else the path with `.gz`; None if neither exists."""
    both = (path, path.with_name(f"{path.name}.gz"))
    return next((candidate for candidate in both if candidate.is_file()), None)


def complete(data_set: DataSet, raw_dir: Place, reading: Reading) -> None:
    """Fetch all files of the first source that has URLs for them into `<raw_dir>/<name>`.

    Does nothing if the files of a source are there. Keeps files of an earlier attempt.
    Raises UserError if no source has URLs for all of its files, or a download fails.
    """
    name, sources = data_set.name, data_set.sources
    if any(find(source, raw_dir) for source in sources):
        return
    whole = [source.files for source in sources if all(file.url for file in source.files)]
    if not whole:
        pages = ", ".join(sorted({file.page for source in sources for file in source.files}))
        raise UserError(f"{name}: not every file has a URL of its own: see {pages}")
    folder = store.place(raw_dir) / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in whole[0]:
        path = folder / (file.name + (".gz" if file.url.endswith(".gz") else ""))
        if not path.exists():
            _fetch(file, path, reading)


def _fetch(file, path, reading):
    """One file, in one attempt, under a temporary name until it is whole and has the known hash."""
    part, digest = path.with_name(f".{path.name}.part"), hashlib.sha256()
    try:
        with urllib.request.urlopen(file.url, timeout=TIMEOUT_S) as answer, open(part, "wb") as out:
            expected = answer.length
            while block := answer.read(BLOCK_BYTES):
                digest.update(block)
                out.write(block)
                reading.on_bytes(part, out.tell())
            n_bytes, sha256, wrong = out.tell(), digest.hexdigest(), None
        if expected not in (None, n_bytes):
            wrong = f"{expected} bytes"
        elif file.sha256 not in (None, sha256):
            wrong = f"sha256 {file.sha256}"
        if wrong:
            found = f"{file.url} gave {n_bytes} bytes, sha256 {sha256}: expected {wrong}"
            raise UserError(f"{file.name}: {found}; see {file.page}")
        os.replace(part, path)
    except (OSError, http.client.HTTPException) as error:
        reason = f"cannot download {file.url}: {getattr(error, 'reason', None) or error}"
        raise UserError(f"{file.name}: {reason}; see {file.page}") from None
    finally:
        part.unlink(missing_ok=True)
