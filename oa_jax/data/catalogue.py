"""All data sets by name: their protocol, the files they are made of, where those come from.

A name has one or more sources. The files of a source lie together in one folder, anywhere up to
three levels below the given one, each plain or with `.gz` at the end of its name. Hashes are of the
unpacked content; a file that is not the published one is used all the same, and named as such in
the metadata.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import os
import pathlib
import urllib.error
import urllib.request
from collections.abc import Iterator

from oa_jax.data import store
from oa_jax.data.store import Place
from oa_jax.data.texts import Reading
from oa_jax.errors import UserError

RATINGS_2014 = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html"
REVIEWS_2018 = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/"
DOUBAN = "https://www.researchgate.net/publication/350793434"
LLM4CDSR = "https://github.com/Applied-Machine-Learning-Lab/LLM4CDSR-pytorch"
ABXI = "https://github.com/DiMarzioBian/ABXI"
AMID = "https://github.com/WujiangXu/AMID"
LLMCDSR = "https://github.com/xhran2010/LLMCDSR"
COMMITS = {
    ABXI: "72e52c9f85c740cb5dbdab11f7e5a70eb28ae00d",
    AMID: "086b9b335fef040f0188b1f75cf22b64ea247e84",
    LLMCDSR: "5825e999d87c4b7f90448df17d05c5f9cea047ba",
}
DEPTH = 3
TIMEOUT_S = 20
BLOCK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class File:
    """A file: its name without .gz, the page that links it, what is known of it.

    size: in words. url: of the file itself. sha256: of the unpacked content. None: not known.
    """

    name: str
    page: str
    size: str | None = None
    url: str | None = None
    sha256: str | None = None
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """Files and the function, "module.function" of this package, that makes events of them."""

    kind: str
    build: str
    files: tuple[File, ...]
    options: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """protocol: whose filters and split. domains: what A and B are. quirks: switches in force."""

    name: str
    protocol: str
    domains: tuple[str, str]
    sources: tuple[Source, ...]
    quirks: dict = dataclasses.field(default_factory=dict)


# Category -> number of ratings, as the page says. A line takes about 41 bytes.
RATINGS = {
    "Beauty": 2_023_070,
    "Books": 22_507_155,
    "Cell_Phones_and_Accessories": 3_447_249,
    "Clothing_Shoes_and_Jewelry": 5_748_920,
    "Electronics": 7_824_482,
    "Grocery_and_Gourmet_Food": 1_297_156,
    "Home_and_Kitchen": 4_253_926,
    "Movies_and_TV": 4_607_047,
    "Sports_and_Outdoors": 3_268_695,
}
REVIEWS = {
    "Cell_Phones_and_Accessories": 10_063_255,
    "Clothing_Shoes_and_Jewelry": 32_292_099,
    "Electronics": 20_994_353,
    "Sports_and_Outdoors": 12_980_837,
}
BEAUTY, BOOKS, PHONES, CLOTHES, ELECTRONICS, FOOD, KITCHEN, MOVIES, SPORTS = RATINGS
# Hash, bytes and name of published files; ABXI's with the folder, as two of its names repeat.
_LIST = pathlib.Path(__file__).with_name("published_files.txt").read_text().split("\n")
HASHES = {name: (size, sha256) for sha256, size, name in map(str.split, filter(None, _LIST))}


def _github(page, folder, path, name, optional=False):
    """A file of a GitHub repository at its commit; `path` is its folder there."""
    commit = COMMITS[page]
    size, sha256 = HASHES.get(f"{folder}/{name}") or HASHES.get(name) or (None, None)
    host = page.replace("github.com", "raw.githubusercontent.com")
    url = f"{host}/{commit}/{path}/{name}"
    words = f"{int(size) / 1e6:.1f} MB" if size else None
    return File(name, f"{page}/tree/{commit[:7]}/{path}", words, url, sha256, optional)


def _ratings_2014(*categories):
    host = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
    files = []
    for c in categories:
        size = f"{RATINGS[c]:,} ratings, about {RATINGS[c] * 41 / 1e6:.0f} MB"
        name = f"ratings_{c}.csv"
        files.append(File(name, RATINGS_2014, size, f"{host}/{name}"))
    return tuple(files)


def _reviews_2018(*categories):
    host = "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_v2"
    files = []
    for c in categories:
        url, size = f"{host}/categoryFiles/{c}.json.gz", f"{REVIEWS[c]:,} reviews"
        files.append(File(f"{c}.json", REVIEWS_2018, size, url))
    for c in categories:
        url = f"{host}/metaFiles2/meta_{c}.json.gz"
        files.append(File(f"meta_{c}.json", REVIEWS_2018, url=url))
    return tuple(files)


def _abxi(name, short, a, b):
    names = (f"{short}_50_preprocessed.txt", "map_item_50.txt", "map_user_50.txt")
    text = [_github(ABXI, short, f"data/{short}", n, n == "map_user_50.txt") for n in names]
    sources = (
        Source("ABXI's text", "published.abxi", tuple(text)),
        Source("ratings of 2014", "raw.abxi", _ratings_2014(a, b)),
    )
    return DataSet(name, "ABXI", (a, b), sources)


def _bundle(name):
    files = (File(f"{name}.pkl", LLM4CDSR), File("id_map.json", LLM4CDSR))
    return Source("LLM4CDSR's bundle", "published.llm4cdsr", files)


def _llm4cdsr(name, a, b, window):
    """The official set, and the one with the true core, which only raw files can give."""
    for full_name, over_prune in ((name, True), (f"{name}_corrected", False)):
        options = {"window": window, "over_prune": over_prune}
        raw = Source("reviews of 2018", "raw.llm4cdsr", _reviews_2018(a, b), options)
        sources = (_bundle(name), raw) if over_prune else (raw,)
        yield DataSet(full_name, "LLM4CDSR", (a, b), sources, {"q18_over_prune": over_prune})


def _douban():
    files = tuple(File(f"{k}reviews_cleaned.txt", DOUBAN) for k in ("book", "movie", "music"))
    sources = (_bundle("book_movie"), Source("Douban's cleaned reviews", "raw.douban", files))
    return DataSet("book_movie", "LLM4CDSR", ("book", "movie"), sources)


def _amid(name, pair, share, domains):
    folder = "amazon_dataset"
    files = (f"{pair}_train{share}.csv", f"{pair}_test.csv")
    files = tuple(_github(AMID, folder, folder, file) for file in files)
    return DataSet(name, "AMID", domains, (Source("AMID's csv", "published.amid", files),))


def _cdsrnp(pair, a, b):
    for share in (25, 75):
        options = {"share": share / 100}
        raw = Source("ratings of 2014", "raw.cdsrnp", _ratings_2014(a, b), options)
        yield DataSet(f"{pair}_cdsrnp{share}", "CDSRNP", (a, b), (raw,))


def _llmcdsr(name, folder, domains):
    def files(*names):
        return tuple(_github(LLMCDSR, folder, f"data/{folder}", n) for n in names)

    lines = files("train_A.txt", "train_B.txt", "train_overlap.txt", "valid.txt", "test.txt")
    pickled = files("item_set_A.pkl", "item_set_B.pkl", "text_A.pkl", "text_B.pkl")
    tables = tuple(File(f"items_{d}.jsonl", LLMCDSR) for d in "AB")
    build = "published.llmcdsr"
    sources = (
        Source("LLMCDSR's text and pickles", build, lines + pickled),
        Source("LLMCDSR's text, items as JSON lines", build, lines + tables),
    )
    return DataSet(name, "LLMCDSR", domains, sources)


SETS = {
    data_set.name: data_set
    for data_set in (
        _abxi("beauty_elec", "abe", BEAUTY, ELECTRONICS),
        _abxi("food_kitchen", "afk", FOOD, KITCHEN),
        _abxi("movie_book", "amb", MOVIES, BOOKS),
        *_llm4cdsr("cloth_sport", CLOTHES, SPORTS, (1514736000, 1577808000)),
        *_llm4cdsr("elec_phone", ELECTRONICS, PHONES, (1500000000, 1600000000)),
        _douban(),
        # AMID's first domain is the phones; its larger training file of this pair is not there.
        _amid("elec_phone_amid", "phone_elec", 25, (PHONES, ELECTRONICS)),
        _amid("cloth_sport_amid", "cloth_sport", 75, (CLOTHES, SPORTS)),
        _amid("cloth_sport_amid25", "cloth_sport", 25, (CLOTHES, SPORTS)),
        *_cdsrnp("elec_phone", PHONES, ELECTRONICS),
        *_cdsrnp("cloth_sport", CLOTHES, SPORTS),
        _llmcdsr("llmcdsr_food_kitchen", "food-kitchen", (FOOD, KITCHEN)),
    )
}


def find(source: Source, raw_dir: Place) -> list[pathlib.Path | None] | None:
    """Paths of a source's files: the first folder at or below raw_dir that holds all of them.

    None in the place of an optional file that is not there; None if no folder has all others.
    """
    for folder in _folders(store.place(raw_dir), DEPTH):
        if not _lacking(source, folder):
            return [plain_or_packed(folder / file.name) for file in source.files]
    return None


def missing(source: Source, raw_dir: Place | None) -> list[File]:
    """Files of a source that the folder with most of them lacks."""
    folders = _folders(store.place(raw_dir), DEPTH) if raw_dir else ()
    everything = [file for file in source.files if not file.optional]
    return min([everything, *(_lacking(source, folder) for folder in folders)], key=len)


def what_is_missing(data_set: DataSet, raw_dir: Place | None) -> str:
    """One line: the source nearest to complete, the file that it lacks, and where that is."""
    file, *more = min((missing(source, raw_dir) for source in data_set.sources), key=len)
    size = f" ({file.size})" if file.size else ""
    others = f" and {len(more)} more" if more else ""
    where = f"in a folder below {raw_dir}, plain or .gz" if raw_dir else "as no directory was given"
    return (
        f"found no {file.name}{size}{others} {where}: "
        f"expected the files of {' or '.join(s.kind for s in data_set.sources)}; see {file.page}"
    )


def _lacking(source, folder):
    wanted = (file for file in source.files if not file.optional)
    return [file for file in wanted if not plain_or_packed(folder / file.name)]


def _folders(root, depth) -> Iterator[pathlib.Path]:
    """The folder and those below it, in the order of their names; hidden ones left out."""
    if not root.is_dir():
        return
    yield root
    if depth:
        # A folder that may not be read holds nothing for us.
        with contextlib.suppress(OSError):
            inner = sorted(p for p in root.iterdir() if not p.name.startswith("."))
            for folder in inner:
                yield from _folders(folder, depth - 1)


def plain_or_packed(path: pathlib.Path) -> pathlib.Path | None:
    """The path, or with `.gz` at its end; None if there is neither file."""
    both = (path, path.with_name(f"{path.name}.gz"))
    return next((candidate for candidate in both if candidate.is_file()), None)


# --- downloads: on request, one attempt each, hashes checked where they are known ----------------


def complete(data_set: DataSet, raw_dir: Place, reading: Reading) -> None:
    """Fetch the files of the first source that can be had whole into `<raw_dir>/<name>`.

    Nothing is done if the files of a source are there. Files of an earlier attempt are kept.
    Raises UserError if no source has URLs for all of its files, or a download fails.
    """
    if any(find(source, raw_dir) for source in data_set.sources):
        return
    for source in data_set.sources:
        if all(file.url for file in source.files):
            folder = store.place(raw_dir) / data_set.name
            folder.mkdir(parents=True, exist_ok=True)
            for file in source.files:
                name = file.name + (".gz" if file.url.endswith(".gz") else "")
                if not (folder / name).exists():
                    fetch(file, folder / name, reading)
            return
    pages = sorted({file.page for source in data_set.sources for file in source.files})
    raise UserError(f"{data_set.name}: not every file has a URL of its own: see {', '.join(pages)}")


def fetch(file: File, path: pathlib.Path, reading: Reading) -> None:
    """One file, under a temporary name until it is whole and has the known hash."""
    part, digest, n_bytes = path.with_name(f".{path.name}.part"), hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(file.url, timeout=TIMEOUT_S) as answer, open(part, "wb") as out:
            expected = answer.length
            while block := answer.read(BLOCK_BYTES):
                digest.update(block)
                out.write(block)
                n_bytes += len(block)
                reading.on_bytes(part, n_bytes)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as e:
        part.unlink(missing_ok=True)
        reason = getattr(e, "reason", None) or e
        raise UserError(
            f"{file.name}: cannot download {file.url}: {reason}; see {file.page}"
        ) from None
    whole = expected is None or n_bytes == expected
    if not whole or (file.sha256 and digest.hexdigest() != file.sha256):
        part.unlink()
        found = f"{n_bytes} bytes, sha256 {digest.hexdigest()}"
        raise UserError(
            f"{file.name}: {file.url} gave {found}: expected "
            f"{f'sha256 {file.sha256}' if whole else f'{expected} bytes'}; see {file.page}"
        )
    os.replace(part, path)
