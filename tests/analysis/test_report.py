"""From workdirs to the page: whole, self-contained, shown by a browser; what is missing is said."""

import base64
import html.parser
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import toy

from analysis.page import Section, page
from analysis.runs import read_run
from oa_jax.ranking.metrics import metrics_by_domain
from oa_jax.runs.run import run as train
from oa_jax.runs.workdir import Workdir
from oa_jax.sheets import Sheet
from tests.analysis._made_runs import contents
from tests.analysis._plain import plain_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
SERVER = ROOT / "tests" / "commands" / "_server.py"
PRELOADED = ("scipy.stats", "statsmodels.stats.multitest", "matplotlib.figure")


class Page(html.parser.HTMLParser):
    """What a page holds; fails on a tag that is not closed."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links, self.ids, self.words = [], [], [], [], []
        self.sources, self.headings = [], []
        self.feed(text)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        self.sources += [attrs[k] for k in ("src", "href") if k in attrs and tag != "a"]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Function (*argv) -> (status, output, errors) of `python -m analysis *argv`."""
    folder = tmp_path_factory.mktemp("streams")
    files = [str(folder / name) for name in ("out", "err")]
    pipe = subprocess.PIPE
    argv = [sys.executable, str(SERVER), *PRELOADED]
    server = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)

    def run(*argv):
        for path in files:
            pathlib.Path(path).write_text("")
        request = {"module": "analysis", "argv": list(map(str, argv)), "cwd": str(ROOT), "env": {}}
        request |= {"stdout": files[0], "stderr": files[1]}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return status, *(pathlib.Path(path).read_text() for path in files)

    with server:
        yield run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An early GCA, really trained (two seeds, three epochs, 60 users), and a baseline beside it
    whose ranks are those of the trained run, handed on from user to user."""
    folder = tmp_path_factory.mktemp("trained")
    config = toy.abxi_config("pair=synthetic,gca=early", seeds=2)  # whose programs others share
    train(config, folder / "early", lambda line: None)
    baseline_beside(folder / "early", folder / "none")
    return folder


def baseline_beside(early, path):
    run = read_run(early)
    ranks = run.ranks()
    entries = [
        {"seed": slot, "epochs": 2, "best_epoch": 1, "diverged_step": 0} for slot in range(2)
    ]
    for split in ("val", "test"):
        for name in (run.candidates, "full"):
            key, counts = f"{split}/{name}", ranks[f"{split}/{name}/n_candidates"]
            ranks[f"{key}/ties"] = 0 * ranks[f"{key}/ties"]
            ranks[f"{key}/rank"] = np.minimum(np.roll(ranks[f"{key}/rank"], 1, 1), counts)
            for slot, entry in enumerate(entries):
                rank, ties = (ranks[f"{key}/{n}"][slot] for n in ("rank", "ties"))
                found = metrics_by_domain(rank, ties, counts, ranks[f"{split}/domain"], 0.0, name)
                entry |= {f"{split}/{k}": v for k, v in found.items()}
    with Workdir(path) as workdir:
        workdir.claim(run.config | {"gca": run.config["gca"] | {"positions": []}})
        workdir.write_json("env.json", run.env)
        workdir.append_rows([{"epoch": 0, "seed": 0, "best_epoch": 0, "val/A/mrr/uni10": 0.1}])
        workdir.write_npz("ranks.npz", ranks)
        workdir.write_json("summary.json", {"n_parameters": 5000, "per_seed": entries})


@pytest.fixture(scope="module")
def reported(command, trained, tmp_path_factory):
    """The report over the trained pair, checkpoints and all: (folder, what was said)."""
    out = tmp_path_factory.mktemp("report")
    before = {k: v[0] for k, v in contents(trained).items()}
    few = ("--interventions=parallel,orthogonal,zero", "--scales=1", "--draws=200")
    status, said, errors = command("report", f"--runs={trained}", f"--out={out}", *few)
    assert status == 0, errors[-2000:] + said[-2000:]
    assert {k: v[0] for k, v in contents(trained).items()} == before  # workdirs are only read
    return out, said


def test_the_page_is_whole_and_needs_nothing_else(reported):
    text = (reported[0] / "report.html").read_text()
    page = Page(text)
    assert page.headings == [
        *("Runs", "What would refute it", "Ranking quality", "Angles", "Angle and quality"),
        *("Interventions", "Quality and parameters", "Over training", "Published values"),
    ]
    assert [link.removeprefix("#") for link in page.links] == page.ids
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"https?://|<script|@import|url\(", text)
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", page.text)


def test_every_image_is_a_drawn_figure_with_words(reported):
    page = Page((reported[0] / "report.html").read_text())
    files = {path.name: path for path in (reported[0] / "figures").iterdir()}
    assert len(page.images) >= 8 and len(files) == 2 * len(page.images)
    drawn = {path.read_bytes() for name, path in files.items() if name.endswith(".png")}
    for image in page.images:
        assert base64.b64decode(image["src"].partition("base64,")[2]) in drawn
        assert len(image["alt"]) > 30
    names = " ".join(files)
    for kind in ("gains", "angles", "cosines", "correlate", "interventions", "scaling"):
        assert f"{kind}_" in names


def test_the_pages_numbers_are_those_of_the_runs(reported, trained):
    words = Page((reported[0] / "report.html").read_text()).text
    summary = json.loads((trained / "early" / "summary.json").read_text())
    assert f"{summary['n_parameters']:,}" in words
    assert f"{summary['mean']['test/A/ndcg@10/uni10']:.4f} ± " in words
    assert f"{summary['mean']['best/gca/0/B/abs_cos']:.3f}" in words
    assert "2 runs, 2 finished" in words and "undefined: 2 distinct points" in words
    assert "no curve: 1 baseline size" in words
    assert "α ⊙ X′∥, along X" in words and "Projection ablation" in words


def test_all_frames_are_left_beside_the_page(reported):
    names = {path.name for path in reported[0].iterdir()}
    assert not any(name.endswith(".tmp") for name in names)
    for name in ("orthogonality", "intervene", "correlate", "scaling", "table", "trajectory"):
        assert {f"{name}.parquet", f"{name}.csv"} <= names


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip(f"needs a browser: none of {', '.join(names)} is on the PATH")
    return found


COUNT = """<script>addEventListener("load", () => { document.title = JSON.stringify({
 good: [...document.images].filter(i => i.complete && i.naturalWidth > 100).length,
 all: document.images.length, wide: document.documentElement.scrollWidth }) })</script></body>"""


def opened(browser, path, profile, width=390):
    """(counts, console lines) of a page after loading; COUNT must be in it."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    flags += [f"--user-data-dir={profile}", f"--window-size={width},900", "--dump-dom"]
    flags += ["--virtual-time-budget=10000"]
    done = subprocess.run([browser, *flags, path.as_uri()], capture_output=True, text=True)
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(title[1]) if title else None, console


def test_a_browser_shows_every_image_and_complains_of_nothing(browser, reported, tmp_path):
    text = (reported[0] / "report.html").read_text()
    path = tmp_path / "copy.html"
    path.write_text(text.replace("</body>", COUNT))
    counts, console = opened(browser, path, tmp_path / "profile")
    assert console == []
    assert counts["good"] == counts["all"] == text.count("<img ")
    assert counts["wide"] <= 500  # nothing makes the page itself scroll sideways on a phone
    # The twin: an image that cannot be decoded and a complaint are both seen.
    broken = text.replace("iVBORw0KGgo", "AAAA", 1).replace(
        "</body>", '<script>console.error("seen")</script>' + COUNT
    )
    path.write_text(broken)
    counts, console = opened(browser, path, tmp_path / "profile")
    assert counts["good"] == counts["all"] - 1 and any("seen" in line for line in console)


@pytest.mark.slow
def test_what_is_missing_is_said_and_the_rest_is_there(command, tmp_path):
    """Unfinished, damaged, another code, a single finished run, no checkpoints: still a page."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    plain_run(runs / "early", "early", commit="beef")
    plain_run(runs / "later", "stack", finished=False)
    (plain_run(runs / "bad") / "config.json").write_text("{")
    status, said, errors = command("report", f"--runs={runs}", f"--out={out}", "--draws=100")
    assert status == 1 and "Traceback" not in errors + said
    words = Page((out / "report.html").read_text()).text
    for expected in (
        "bad/config.json: not valid JSON",
        "later: unfinished (no summary.json, 4 epochs so far)",
        "different code versions",
        "early: no finished baseline of the same configuration",
        "1 configuration, expected at least 3",
        "Missing: no trained model was intervened on",
        "Missing: distributions and subspaces",
    ):
        assert expected in words
    assert not re.search(r"\bnan\b|\bNone\b", words)


@pytest.mark.slow
def test_only_unfinished_runs_still_make_a_page(command, tmp_path):
    plain_run(tmp_path / "run", "early", finished=False)
    where = (f"--runs={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    status, _, errors = command("report", "--fast", *where)
    assert status == 0, errors
    words = Page((tmp_path / "out" / "report.html").read_text()).text
    assert "no finished run: no table" in words and "1 run, 0 finished" in words
    for name in ("correlate", "scaling", "table"):
        status, said, errors = command(name, *where)
        assert status == 0 and "no finished run" in said and not errors


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "COMMAND: found none: expected one of orthogonality, correlate"),
        (("draw",), "COMMAND: found 'draw'"),
        (("table", "--out=x"), "--runs: missing"),
        (("table", "--runs=/no/such", "--out=x"), "--runs: /no/such: no such folder"),
        (("table", "--runs={run}"), "--out: missing"),
        (
            ("table", "--runs=~no-such-user", "--out=x"),
            "--runs=~no-such-user: there is no home folder",
        ),
        (("table", "--runs={run}", "--out=gs://b/x"), "--out=gs://b/x: a URL: expected a path"),
        (("table", "--runs={run}", "--out={run}/results"), "lies in the workdir"),
        (("table", "--runs={run}", "--out={out}", "--metrics=ndcg"), "--metrics=ndcg: expected"),
        (("table", "--runs={run}", "--out={out}", "--baseline=x"), "--baseline=x: no such run"),
        (("correlate", "--runs={run}", "--out={out}", "--points=all"), "--points"),
        (("scaling", "--runs={run}", "--out={out}", "--draws=5"), "draws"),
        (("correlate", "--metrics=auc"), "no such flag"),
        *(
            (
                (name, "--runs={run}", "--out={out}", "--metric=foo"),
                "--metric=foo: no such metric: ",
            )
            for name in ("correlate", "scaling", "report")
        ),
        (("correlate", "--runs={run}", "--out={out}", "--statistic=foo"), "--statistic=foo: no"),
        (("table", "--runs={run}", "--out={out}", "--metrics="), "--metrics=: empty: expected"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(command, tmp_path, argv, words):
    run = plain_run(tmp_path / "run", "early")
    before = contents(run)
    argv = [word.format(run=run, out=tmp_path / "out") for word in argv]
    status, _, errors = command(*argv)
    assert status == 2 and len(errors.splitlines()) == 1 and words in errors, errors
    assert contents(run) == before and not (tmp_path / "out").exists()


def test_help_shows_the_flags_of_the_command(command):
    status, said, _ = command("correlate", "--help")
    assert status == 0 and "--statistic" in said and "--pair_seeds" not in said
    status, said, _ = command("--help")
    assert status == 0 and "trajectory" in said and "--runs" in said


def test_cells_and_sentences_are_escaped():
    sheet = Sheet("<b>&", ["<i>"], [["<script>"]])
    section = Section("A & B", "<how>", "short", ["<line>"], ["<gone>"], [sheet])
    text = page("<title>", "<lead>", [section])
    words = Page(text).text
    for expected in ("<b>&", "<i>", "<script>", "<how>", "<line>", "Missing: <gone>", "<lead>"):
        assert expected in words
    assert "<script>" not in text


def test_long_tables_and_lists_are_folded():
    rows = [[str(i)] for i in range(50)]
    section = Section("x", "", "", [str(i) for i in range(50)], [], [Sheet("t", ["n"], rows)])
    assert page("t", "", [section]).count("<details>") == 2
