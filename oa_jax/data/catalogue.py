"""All data sets by name: their protocol, the files they are made of, and where those come from.

A name has one or more sources. The files of a source lie together in one folder, anywhere up to
three levels below the given one, each plain or with `.gz` at the end of its name. Hashes are of the
unpacked content; a file that is not the published one is used all the same, and named as such in
the metadata.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

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
# File, bytes and sha256 as published; ABXI's with the folder, as two of its names repeat.
_PUBLISHED = """
abe/abe_50_preprocessed.txt 1913628 e13235003725700fdc709eb78a8865bd7e4ab75dc28ae569f7a4cebcdab1e33b
abe/map_item_50.txt 627636 4e144f3fea1a5e8037cd56167a084ce4d73c6ccc123187055470b3da9818de74
abe/map_user_50.txt 105126 efcec3a6a523c25753390afee0cb2ad74f68de5dfaf27574e4108e97b8452d24
afk/afk_50_preprocessed.txt 2913978 5f9856f574879920a70c93461add1ebc1c997b1ce6d626ba8d475315f53a4a15
afk/map_item_50.txt 719364 64a939f71c0c48ba181d6d24e384af1160812bdf244f20c58ef101f5fc54b3c3
afk/map_user_50.txt 168481 e20b90e5b7b298e38243a64eb54830d537ea5a7a3ab5ae74d6d0179142a6d684
amb/map_item_50.txt 3308985 8ea1f481618bab61bdd81769f2ef9a1630f6aec304f622cb5f0459d00c6d6fb4
amb/map_user_50.txt 690128 fa0b0500a2ef857f715e520c02fef3ce96a89dc822a6c91636ef9a33aa569256
cloth_sport_test.csv 386707 33cb35be9039e7f1b464cb659c093b6ba173d7c7d75ceb2df55b658a2d0e12f0
cloth_sport_train25.csv 858532 804c1bdf513ff56e4e7aba1096044bd525d2efb1716f385d3d3cb9b16c26ce35
cloth_sport_train75.csv 1289578 e4d899a136c2e7bb6e731d644ce5f96b449a96ddf9a209ae48f5a7b1b7cba1f5
phone_elec_test.csv 1418012 a47d1d200d4270f1d1c395c70da3c53d7042db471a7f1e9f7cd4efde5b1fc346
phone_elec_train25.csv 3629175 a75174385a8b633c296f47f7f8d49e024952ef9673dd61b2b6c60383f387548d
train_A.txt 201449 4b39bfa69d9d001938d7ec32853928e51a53c141a95f3b698b052eb27821c3ad
train_B.txt 1774169 bab4611796a5c077baf29d6c5f4a70c40cd25e38bb90e9d85035b8c1f06c7a93
train_overlap.txt 560265 0375a8e5c049b9377c1199bda2d0de270e989f1cdf08ff21e4d120ec4a5b5986
valid.txt 96861 6d93b5025ad65efef71f0b2e1beaa5899f5ed8f8fd95da96de1286f5b8cb0074
test.txt 86602 bdc978617810e6bf9f6eac31260e0688169c0c1cdf34cbf395774f3896e37aa4
item_set_A.pkl 138370 510aa4c2b8cc6fc37ccb0b56dbc33d56eb96583a580463b19f941ddb9d31a5d5
item_set_B.pkl 442060 96f1ff3d4604e79a416796fae5bc9df2828f06657961aa641d0c6f7f33a4a93b
text_A.pkl 706631 adc2883e8ea4acee1e5d3e06126549753d640095747a82537959ff11600bcd5c
text_B.pkl 2132336 dd467587886f342cf9add91c463fb06c0cc2ab414d72b52eacc18a63bf3833ff
"""
HASHES = {row.split()[0]: row.split()[1:] for row in _PUBLISHED.strip().split("\n")}


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
    return tuple(
        File(
            f"ratings_{c}.csv",
            RATINGS_2014,
            f"{RATINGS[c]:,} ratings, about {RATINGS[c] * 41 / 1e6:.0f} MB",
            f"{host}/ratings_{c}.csv",
        )
        for c in categories
    )


def _reviews_2018(*categories):
    host = "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_v2"
    files = [
        File(
            f"{c}.json",
            REVIEWS_2018,
            f"{REVIEWS[c]:,} reviews",
            f"{host}/categoryFiles/{c}.json.gz",
        )
        for c in categories
    ]
    for c in categories:
        url = f"{host}/metaFiles2/meta_{c}.json.gz"
        files.append(File(f"meta_{c}.json", REVIEWS_2018, url=url))
    return tuple(files)


def _abxi(name, short, a, b):
    text = [
        _github(ABXI, short, f"data/{short}", file, optional)
        for file, optional in (
            (f"{short}_50_preprocessed.txt", False),
            ("map_item_50.txt", False),
            ("map_user_50.txt", True),
        )
    ]
    sources = (
        Source("ABXI's text", "from_published.abxi", tuple(text)),
        Source("ratings of 2014", "from_raw.abxi", _ratings_2014(a, b)),
    )
    return DataSet(name, "ABXI", (a, b), sources)


def _llm4cdsr(name, a, b, window):
    """The official set, and the one with the true core, which only raw files can give."""
    bundle = Source(
        "LLM4CDSR's bundle",
        "from_published.llm4cdsr",
        (File(f"{name}.pkl", LLM4CDSR), File("id_map.json", LLM4CDSR)),
    )
    out = []
    for full_name, over_prune in ((name, True), (f"{name}_corrected", False)):
        options = {"window": window, "over_prune": over_prune}
        raw = Source("reviews of 2018", "from_raw.llm4cdsr", _reviews_2018(a, b), options)
        sources = (bundle, raw) if over_prune else (raw,)
        quirks = {"q18_over_prune": over_prune}
        out.append(DataSet(full_name, "LLM4CDSR", (a, b), sources, quirks))
    return out


def _douban():
    files = tuple(File(f"{k}reviews_cleaned.txt", DOUBAN) for k in ("book", "movie", "music"))
    bundle = (File("book_movie.pkl", LLM4CDSR), File("id_map.json", LLM4CDSR))
    sources = (
        Source("LLM4CDSR's bundle", "from_published.llm4cdsr", bundle),
        Source("Douban's cleaned reviews", "from_raw.douban", files),
    )
    return DataSet("book_movie", "LLM4CDSR", ("book", "movie"), sources)


def _amid(name, pair, share, domains):
    files = (f"{pair}_train{share}.csv", f"{pair}_test.csv")
    folder = "amazon_dataset"
    files = tuple(_github(AMID, folder, folder, file) for file in files)
    return DataSet(name, "AMID", domains, (Source("AMID's csv", "from_published.amid", files),))


def _cdsrnp(pair, a, b):
    for share in (25, 75):
        options = {"share": share / 100}
        raw = Source("ratings of 2014", "from_raw.cdsrnp", _ratings_2014(a, b), options)
        yield DataSet(f"{pair}_cdsrnp{share}", "CDSRNP", (a, b), (raw,))


def _llmcdsr(name, folder, domains):
    def files(*names):
        return tuple(_github(LLMCDSR, folder, f"data/{folder}", n) for n in names)

    lines = ("train_A", "train_B", "train_overlap", "valid", "test")
    lines = files(*(f"{stem}.txt" for stem in lines))
    build = "from_published.llmcdsr"
    pickled = files("item_set_A.pkl", "item_set_B.pkl", "text_A.pkl", "text_B.pkl")
    tables = tuple(File(f"items_{d}.jsonl", LLMCDSR) for d in "AB")
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


def find(source: Source, raw_dir) -> list[pathlib.Path | None] | None:
    """Paths of a source's files: the first folder at or below raw_dir that holds all of them.

    None in the place of an optional file that is not there; None if no folder has all others.
    """
    for folder in _folders(pathlib.Path(raw_dir).expanduser(), DEPTH):
        paths = [_plain_or_packed(folder / file.name) for file in source.files]
        if all(path or file.optional for path, file in zip(paths, source.files, strict=True)):
            return paths
    return None


def missing(source: Source, raw_dir) -> list[File]:
    """Files of a source that the folder with most of them lacks."""
    best = [file for file in source.files if not file.optional]
    folders = _folders(pathlib.Path(raw_dir).expanduser(), DEPTH) if raw_dir else ()
    for folder in folders:
        lacking = [
            file
            for file in source.files
            if not file.optional and not _plain_or_packed(folder / file.name)
        ]
        best = min(best, lacking, key=len)
    return best


def _folders(root, depth):
    """The folder and those below it, in the order of their names; hidden ones left out."""
    if not root.is_dir():
        return
    yield root
    if depth:
        try:
            names = sorted(
                e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")
            )
        except OSError:
            return
        for name in names:
            yield from _folders(root / name, depth - 1)


def _plain_or_packed(path):
    for candidate in (path, path.with_name(f"{path.name}.gz")):
        if candidate.is_file():
            return candidate
    return None
