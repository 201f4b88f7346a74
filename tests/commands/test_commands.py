"""The commands as people call them: a mistake is one line on standard error and exit status 2."""

import dataclasses
import fcntl
import gzip
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import toy

TESTS = pathlib.Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
GOLDEN = TESTS / "golden" / "abxi_small.npz"
TRAIN, EVALUATE = "oa_jax.train", "oa_jax.evaluate"
INSPECT, VERIFY = "oa_jax.inspect", "oa_jax.interop.verify"
RULES, REPORT = "oa_jax.rules", "oa_jax.report"
CONFIG = "--config=configs/abxi.py:pair=beauty_elec,runlocal"
SMALL = (
    "--config.seeds=1",
    "--config.train.max_epochs=3",
    "--config.train.checkpoint_every=2",
    "--config.train.n_negatives=4",
    "--config.train.batch_size=16",
    "--config.evaluate.n_negatives=10",
    "--config.evaluate.block_users=16",
    "--config.train.quick_compile=True",
    "--config.model.d_embed=8",
    "--config.model.d_ffn=8",
    "--config.model.rank_domain=2",
    "--config.model.rank_invariant=2",
    "--config.model.length=12",
)
N_ITEMS, N_USERS = (24, 30), 20
SEQUENCES, ITEMS = "abe_50_preprocessed.txt", "map_item_50.txt"


@dataclasses.dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    def error(self) -> str:
        """The one line of a refused command."""
        assert self.status == 2, (self.status, self.err)
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        return lines[0]


@pytest.fixture(scope="module")
def environment():
    """Variables of the commands: no data by default."""
    return {"OA_DATA_DIR": ""}


@pytest.fixture(scope="module")
def command(environment, tmp_path_factory):
    """Function (MODULE, *argv, cwd) -> Result, as of `python -m MODULE *argv`."""
    files = [str(tmp_path_factory.mktemp("streams") / name) for name in ("out", "err")]
    server = subprocess.Popen(
        [sys.executable, str(TESTS / "commands" / "_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(module, *argv, cwd=ROOT):
        for path in files:
            pathlib.Path(path).write_text("")
        request = {"module": module, "argv": list(map(str, argv)), "cwd": str(cwd)}
        request |= {"env": environment, "stdout": files[0], "stderr": files[1]}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return Result(status, *(pathlib.Path(path).read_text() for path in files))

    with server:
        yield run
        server.stdin.close()


def draw_lines():
    """A line per user: eight to twelve events, both domains early and late."""
    rng = np.random.default_rng(0)
    lines = []
    for user in range(N_USERS):
        items = [rng.integers(1, N_ITEMS[0] + 1, 6), N_ITEMS[0] + rng.integers(1, 31, 6)]
        order = rng.permutation(12)[: rng.integers(8, 13)]
        events = [f"{item}|{100 + k}" for k, item in enumerate(np.concatenate(items)[order])]
        lines.append(" ".join([str(user), *events]))
    return lines


def write_data(folder, lines=None, mapping=None):
    """ABXI's two files; returns the folder."""
    folder.mkdir(exist_ok=True)
    n_a, n_b = N_ITEMS
    if mapping is None:
        mapping = json.dumps({f"i{k}": [k, int(k > n_a)] for k in range(1, n_a + n_b + 1)})
    lines = draw_lines() if lines is None else lines
    (folder / SEQUENCES).write_text("\n".join(lines) + "\n")
    (folder / ITEMS).write_text(mapping)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(command, data, tmp_path_factory):
    """(workdir of a finished run, what its command printed)."""
    workdir = tmp_path_factory.mktemp("runs") / "with space and ü"
    return workdir, command(
        TRAIN, CONFIG, *SMALL, f"--config.data.dir={data}", f"--workdir={workdir}"
    )


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the finished run."""
    assert finished[1].status == 0, finished[1]
    return shutil.copytree(finished[0], tmp_path / "copy")


def listing(folder):
    return {p.relative_to(folder): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


def test_good_input_trains(finished, data, command):
    workdir, result = finished
    # Not empty on a slow machine: XLA reports slow compilations there.
    assert result.status == 0 and "Traceback" not in result.err and "error:" not in result.err
    assert f"results in {workdir}" in result.out and "NDCG@10" in result.out
    before = listing(workdir)
    again = command(TRAIN, CONFIG, *SMALL, f"--config.data.dir={data}", f"--workdir={workdir}")
    assert again.status == 0 and "is finished: nothing to do" in again.out
    assert listing(workdir) == before


# --- the configuration -----------------------------------------------------------------------

PAIR = "--config=configs/abxi.py:pair=synthetic"
GOOD_CONFIGS = [
    [f"{PAIR},gca=early", "--config.data.world.single=(30,20)"],
    [f"{PAIR},gca=0-1,runlocal", "--config.gca.positions=(0,2)"],
    [f"{PAIR},size=small", "--config.model.d_embed=416", "--config.seeds=16"],
    ["--config", f"{PAIR[9:]}", "--config.gca.heads", "4", "--config.protocol=corrected"],
    [PAIR, "--config.data.world.redundancy=0", "--config.quirks.q3_attend_to_padding=False"],
    [PAIR, "--noconfig.train.compaction", "--config.gca.positions=()"],
    ["--config=configs/sasrec.py:pair=synthetic,gca=early"],
]


@pytest.mark.parametrize("argv", GOOD_CONFIGS, ids=lambda argv: " ".join(argv))
def test_good_configurations_are_inspected(command, argv):
    result = command(INSPECT, "--memory=false", *argv, "--config.data.world.n_users=200")
    assert (result.status, result.err) == (0, "") and " parameters\n" in result.out


def test_streams_are_not_timed(command, tmp_path):
    study = tmp_path / "study.py"
    study.write_text(
        "from oa_jax import presets\n"
        "def get_study(arg=None):\n"
        "    def make(resident, rate):\n"
        "        config = presets.load('configs/abxi.py:pair=synthetic,runlocal')\n"
        "        config.data.resident, config.train.learning_rate = resident, rate\n"
        "        return config\n"
        "    names = 'resident', 'streamed', 'also'\n"
        "    return {name: make(name == 'resident', i + 1.0) for i, name in enumerate(names)}\n"
    )
    result = command(
        "oa_jax", "sweep", f"--study={study}", f"--out={tmp_path / 'out'}", "--dry-run"
    )
    assert "error: --dry-run: streamed: data.resident=False: expected True" in result.error()
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written(data):
    argv = [sys.executable, "-m", "oa_jax", "data", "list", f"--data_dir={data}"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert result.stderr == "error: standard output: No space left on device\n"
    assert result.returncode == 2


def test_rules_are_ranked_and_reported_beside_a_run(command, data, finished, tmp_path):
    argv = [CONFIG, *SMALL, f"--config.data.dir={data}", f"--out={tmp_path / 'rules.json'}"]
    result = command(RULES, "--markdown", *argv)
    assert result.status == 0, result.err
    assert "| rules | last-item popularity | beauty_elec " in result.out
    assert " | official | 0 | – | A | uni10 |" in result.out
    both = command(REPORT, "--markdown", finished[0], tmp_path / "rules.json")
    assert both.status == 0 and f"| {finished[0].name} | abxi | beauty_elec " in both.out
    rows = [line for line in result.out.splitlines() if line.startswith("| rules |")]
    assert len(rows) > 4 and rows == both.out.splitlines()[-len(rows) :]
    error = command(RULES, *argv[:-1], f"--out={tmp_path}/nowhere/rules.json").error()
    assert "no such folder" in error
    assert "--config: missing" in command(RULES).error()


BAD_CONFIGS = {
    "no file": ["--config=nowhere.py"],
    "a folder": ["--config=configs"],
    "pair": ["--config=configs/abxi.py:pair=books"],
    "argument": ["--config=configs/abxi.py:colour=red"],
    "gca": ["--config=configs/abxi.py:gca=garbage"],
    "size": ["--config=configs/abxi.py:size=huge"],
    "runlocal": ["--config=configs/abxi.py:runlocal=maybe"],
    "field": [PAIR, "--config.model.width=3"],
    "group": [PAIR, "--config.model=3"],
    "whole": [PAIR, "--config.model.d_embed=wide"],
    "real": [PAIR, "--config.model.dropout=much"],
    "flag": [PAIR, "--config.quirks.q3_attend_to_padding=maybe"],
    "tuple": [PAIR, "--config.gca.positions=(0,"],
    "single": [PAIR, "--config.data.world.single=(1,-2)"],
    "no value": [PAIR, "--config.seeds"],
    "first": ["--config.seeds=1", PAIR],
    "alone": ["--config.seeds=1"],
    "none": [],
    "backbone": [PAIR, "--config.backbone=other"],
    "heads": [PAIR, "--config.model.heads=3"],
    "gca heads": [PAIR, "--config.gca.heads=5"],
    "place": [PAIR, "--config.gca.positions=(0,7)"],
    "order": [PAIR, "--config.gca.positions=(2,0)"],
    "twice": [PAIR, "--config.gca.positions=(1,1)"],
    "seeds": [PAIR, "--config.seeds=0"],
    "negative seeds": [PAIR, "--config.seeds=-2"],
    "first seed": [PAIR, "--config.first_seed=-1"],
    "dropout": [PAIR, "--config.model.dropout=1.5"],
    "not a number": [PAIR, "--config.train.learning_rate=nan"],
    "protocol": [PAIR, "--config.protocol=fair"],
    "split": [PAIR, "--config.data.split=random"],
    "warm-up": [PAIR, "--config.train.warmup_epochs=24"],
    "redundancy": [PAIR, "--config.data.world.redundancy=2"],
    "part": [PAIR, "--config.gca.part=sideways"],
    "update": [PAIR, "--config.gca.update=parallel"],  # its older name, also that of a method
    "fusion": [PAIR, "--config.gca.fusion=sum"],
    "source": [PAIR, "--config.data.name=books"],
    "negatives": [PAIR, "--config.train.n_negatives=400"],
    "candidates": [PAIR, "--config.evaluate.n_negatives=399"],
    "flag name": [PAIR, "--wrokdir=x"],
    "stray": [PAIR, "stray"],
    "flagfile": ["--flagfile=nowhere"],
}
SAID = {
    "no file": "--config=nowhere.py: no such file: expected a file such as configs/abxi.py",
    "a folder": "--config=configs: no such file: expected a file such as",
    "pair": "data source: found 'books'; ",
    "argument": "argument 'colour': expected one of pair, gca, size, runlocal",
    "gca": "gca=garbage: expected none, early, stack or places such as 0-1",
    "size": "size=huge: expected one of official, small",
    "runlocal": "runlocal=maybe: expected one of true, false",
    "field": "--config.model.width: no such field: --config.model has attention, blocks, d_embed, ",
    "group": "--config.model: a group: expected one of its fields attention, blocks, ",
    "whole": "--config.model.d_embed=wide: expected a whole number",
    "real": "--config.model.dropout=much: expected a number",
    "flag": "--config.quirks.q3_attend_to_padding=maybe: expected true or false",
    "tuple": "--config.gca.positions=(0,: expected numbers such as '(0,1)'",
    "no value": "Missing value for flag --config.seeds",
    "first": "--config.seeds=1: expected --config before it",
    "alone": "--config.seeds: expected --config first",
    "none": "--config: missing: expected a file such as",
    "backbone": "--config.backbone=other: expected one of abxi, llm4cdsr, cdsrnp, sasrec",
    "heads": "--config.model.heads=3: expected a divisor of model.d_embed=32",
    "gca heads": "--config.gca.heads=5: expected a divisor of model.d_embed=32",
    "place": "--config.gca.positions=[0, 7]: expected different places in ascending order",
    "order": "--config.gca.positions=[2, 0]: expected different places in ascending order",
    "twice": "--config.gca.positions=[1, 1]: expected different places in ascending order",
    "seeds": "--config.seeds=0: expected a whole number from 1 to 10000",
    "negative seeds": "--config.seeds=-2: expected a whole number from 1 to 10000",
    "first seed": "--config.first_seed=-1: expected a whole number from 0",
    "dropout": "--config.model.dropout=1.5: expected a number from 0 to 0.999",
    "not a number": "--config.train.learning_rate=nan: expected a number above 0",
    "protocol": "--config.protocol=fair: expected one of official, corrected",
    "split": "--config.data.split=random: expected one of own, leave_one_out",
    "warm-up": "--config.train.warmup_epochs=24: expected less than max_epochs=24",
    "redundancy": "--config.data.world.redundancy=2.0: expected a number from 0 to 1",
    "single": "--config.data.world.single=[1, -2]: expected two, each a whole number of",
    "part": "--config.gca.part=sideways: expected one of full, parallel, orthogonal, split",
    "update": "--config.gca.update: no such field: did you mean part? --config.gca has causal, ",
    "fusion": "--config.gca.fusion=sum: expected one of gca",
    "source": "data source: found 'books'; ",
    "negatives": "train.n_negatives: 400: expected at most ",
    "candidates": "--config.evaluate.n_negatives=",
    "flag name": "--wrokdir: no such flag: --help shows them. Did you mean: workdir",
    "stray": "argument 'stray': expected flags only",
    "flagfile": "Unable to open flagfile",
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_mistake_in_the_configuration(command, tmp_path, case):
    argv = [f"--workdir={tmp_path / 'run'}", *BAD_CONFIGS[case]]
    assert SAID[case] in command(TRAIN, *argv).error()
    # A refused command claims nothing: put right, it may use the same folder.
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_quickstart_wants_a_folder(command):
    assert (
        "--workdir: missing: expected a folder for the two"
        in command("oa_jax.quickstart", "--workdir=").error()
    )


def test_a_configuration_file_with_a_syntax_error(command, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config(arg=None):\n    return [\n")
    assert f"{path}: line 2: not Python" in command(INSPECT, f"--config={path}").error()


# --- the data --------------------------------------------------------------------------------


def with_line(number, text):
    lines = draw_lines()
    return lines[: number - 1] + [text] + lines[number:]


def only_of(domain):
    """Lines whose items are all of one domain."""
    first = 1 + domain * N_ITEMS[0]
    tokens = [" ".join(f"{first + (u + k) % 20}|{k}" for k in range(8)) for u in range(N_USERS)]
    return [f"{user} {events}" for user, events in enumerate(tokens)]


BAD_LINES = {
    "not a number": (
        with_line(3, "2 1|1 two|2 3|3"),
        "line 3, token 2: found 'two|2', expected item|time, two whole",
    ),
    "not an id": (with_line(3, "2 1|1 2.5|2 3|3"), "line 3, token 2: found '2.5|2', expected"),
    "id 0": (with_line(3, "2 1|1 0|2 3|3"), "line 3, token 2, item: found 0, expected an id in 1"),
    "id 55": (with_line(3, "2 1|1 55|2 3|3"), "line 3, token 2, item: found 55, expected an id"),
    "time": (with_line(3, "2 1|1 2|9 3|3"), "line 3, token 3, time: found 3, expected a time not"),
    "empty line": (with_line(3, ""), "line 3, user: found '', expected a whole"),
    "no items": (with_line(3, "2"), "line 3: found '2', expected a user and"),
    "user twice": (with_line(3, "1 1|1 2|2 3|3"), "line 3, user: found 1, expected a user of its"),
    "user 99": (with_line(3, "99 1|1 2|2 3|3"), "line 3, user: found 99, expected ids 0..19"),
    "only A": (only_of(0), "no training target in domain B"),
    "only B": (only_of(1), "no training target in domain A"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_mistake_in_the_sequences(command, tmp_path, case):
    lines, expected = BAD_LINES[case]
    folder = write_data(tmp_path / "data", lines)
    argv = (CONFIG, *SMALL, f"--config.data.dir={folder}", f"--workdir={tmp_path / 'run'}")
    error = command(TRAIN, *argv).error()
    assert expected in error
    assert str(folder / SEQUENCES) in error or case in ("only A", "only B")


def test_users_without_a_domain_are_no_mistake(command, tmp_path):
    lines = [*with_line(1, only_of(0)[0]), f"{N_USERS} {only_of(1)[0][2:]}"]
    folder = write_data(tmp_path / "data", lines)
    result = command(INSPECT, "--memory=false", CONFIG, *SMALL, f"--config.data.dir={folder}")
    assert (result.status, result.err) == (0, "")


def damage(folder, kind):
    """Damage one file of the data; returns its name."""
    sequences, items = folder / SEQUENCES, folder / ITEMS
    if kind == "no sequences":
        sequences.unlink()
    elif kind == "no items":
        items.unlink()
    elif kind == "empty":
        sequences.write_text("")
    elif kind == "truncated":
        packed = gzip.compress(sequences.read_bytes())
        sequences.unlink()
        (folder / f"{SEQUENCES}.gz").write_bytes(packed[: len(packed) // 2])
    elif kind == "not gzip":
        sequences.rename(folder / f"{SEQUENCES}.gz")
    elif kind == "not UTF-8":
        sequences.write_bytes(b"0 1|1\n1 \xff|2\n")
    elif kind == "not JSON":
        items.write_text('{"i1": [1, 0],\n oops}')
    elif kind == "holes":
        items.write_text('{"i1": [1, 0], "i3": [3, 1]}')


DAMAGES = {
    "no sequences": f"found no {SEQUENCES} (",
    "no items": f"found no {ITEMS} (",
    "empty": f"{SEQUENCES}: line 1: expected text, found an empty file",
    "truncated": f"{SEQUENCES}.gz: expected a whole gzip file, found: ",
    "not gzip": f"{SEQUENCES}.gz: expected a whole gzip file, found: Not a gzipped file",
    "not UTF-8": f"{SEQUENCES}: line 2: expected UTF-8 text, found byte 0xff",
    "not JSON": f"{ITEMS}: line 2, column 2: expected JSON, found: ",
    "holes": f"{ITEMS}: ",
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_files(command, tmp_path, kind):
    folder = write_data(tmp_path / "data")
    damage(folder, kind)
    argv = (CONFIG, *SMALL, f"--config.data.dir={folder}")
    assert DAMAGES[kind] in command(INSPECT, "--memory=false", *argv).error()


def test_no_folder_of_data_at_all(command):
    error = command(INSPECT, CONFIG).error()
    assert "give its folder by --config.data.dir= or OA_DATA_DIR" in error


# --- the workdir -----------------------------------------------------------------------------


def train(command, data, workdir, *more):
    return command(
        TRAIN, CONFIG, *SMALL, f"--config.data.dir={data}", f"--workdir={workdir}", *more
    )


def test_places_that_can_be_no_workdir(command, data, tmp_path):
    assert "--workdir: missing: expected a folder" in command(TRAIN, CONFIG).error()
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/run"):
        expected = f"--workdir={place}: cannot write there: "
        assert expected in train(command, data, place).error()
    assert (tmp_path / "file").read_text() == "mine"


def test_foreign_content_is_left_alone(command, data, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    assert "holds thesis.tex but no config.json: expected an empty folder" in (
        train(command, data, tmp_path).error()
    )
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    assert not (tmp_path / "config.json").exists()


def test_a_run_of_another_configuration(command, data, workdir):
    before = listing(workdir)
    error = train(command, data, workdir, "--config.model.dropout=0.1").error()
    assert (
        f"--workdir={workdir} holds a run of another configuration: model.dropout: there" in error
    )
    assert "0.5, asked for 0.1" in error and listing(workdir) == before


@pytest.mark.parametrize("module", [TRAIN, EVALUATE])
def test_a_workdir_in_use(command, data, workdir, module):
    argv = [] if module == EVALUATE else [CONFIG, *SMALL, f"--config.data.dir={data}"]
    with open(workdir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        error = command(module, *argv, f"--workdir={workdir}").error()
    assert f"--workdir={workdir}: in use by another process" in error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "config.json: not valid JSON: "),
        ("", "config.json: not valid JSON: "),
        ("[]", "expected"),
        ("{}", "backbone"),
        ('{"backbone": "x", "data": 3}', "backbone"),
    ],
)
def test_a_damaged_configuration(command, data, workdir, text, expected):
    (workdir / "config.json").write_text(text)
    assert expected in train(command, data, workdir).error()
    error = command(EVALUATE, f"--workdir={workdir}").error()
    assert f"{workdir}/config.json: " in error and expected in error


def test_data_that_changed_since_the_run_began(command, data, workdir, tmp_path):
    lines = draw_lines()
    lines[4] = lines[4].rsplit(" ", 1)[0] + " 7|200"
    changed = write_data(tmp_path / "changed", lines)
    (workdir / "summary.json").unlink()
    error = train(command, changed, workdir).error()
    assert "its data fingerprint is" in error and "expected the data that the run began" in error
    error = command(EVALUATE, f"--workdir={workdir}", f"--data_dir={changed}").error()
    assert "its data fingerprint is" in error
    (tmp_path / "empty").mkdir()
    error = command(EVALUATE, f"--workdir={workdir}", f"--data_dir={tmp_path / 'empty'}").error()
    assert f"found no {SEQUENCES}" in error


# --- evaluate --------------------------------------------------------------------------------


def test_evaluation_of_a_finished_run(command, workdir):
    (workdir / "summary.json").unlink()
    result = command(EVALUATE, f"--workdir={workdir}")
    assert (result.status, result.err) == (0, "")
    assert "ranks equal the stored ones" in result.out and "NDCG@10" in result.out
    assert (workdir / "summary.json").exists()


def test_evaluation_does_not_end_a_run(command, workdir):
    shutil.rmtree(workdir / "checkpoints" / "3")
    for name in ("summary.json", "ranks.npz"):
        (workdir / name).unlink()
    before = listing(workdir)
    result = command(EVALUATE, f"--workdir={workdir}")
    assert (result.status, result.err) == (0, "")
    assert "checkpoint after epoch 2" in result.out and "the run has not ended" in result.out
    assert listing(workdir) == before


def test_ranks_that_cannot_be_read_are_written_anew(command, workdir):
    (workdir / "ranks.npz").write_bytes(b"no ranks")
    result = command(EVALUATE, f"--workdir={workdir}")
    assert result.status == 0 and "ranks.npz: damaged: " in result.out
    assert "expected an .npz file: written anew" in result.out
    with np.load(workdir / "ranks.npz") as ranks:
        assert "seed" in ranks.files


def test_a_mesh_that_is_none(command, workdir):
    error = command(EVALUATE, f"--workdir={workdir}", "--mesh=tables:2").error()
    assert "--mesh=tables:2: expected sizes of the axes seed, data and table" in error
    error = command(EVALUATE, f"--workdir={workdir}", "--mesh=data:9").error()
    assert error.startswith("error: --mesh=data:9: 9 devices: found 1: expected no more")


def test_evaluation_of_what_is_no_run(command, workdir, tmp_path):
    assert "--workdir: missing: expected the folder of a run" in command(EVALUATE).error()
    for place in (tmp_path, tmp_path / "nowhere", workdir / "config.json"):
        error = command(EVALUATE, f"--workdir={place}").error()
        assert f"--workdir={place}: no config.json in it: expected the folder of a run" in error
    shutil.rmtree(workdir / "checkpoints")
    before = listing(workdir)
    error = command(EVALUATE, f"--workdir={workdir}").error()
    assert f"{workdir}/checkpoints: no checkpoint: expected a run past its first save" in error
    assert listing(workdir) == before


def halve_checkpoints(workdir):
    """Of a version without sums: else no damaged file would be read."""
    for path in (workdir / "checkpoints").glob("*/SHA256SUMS"):
        path.unlink()
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint(command, workdir):
    halve_checkpoints(workdir)
    error = command(EVALUATE, f"--workdir={workdir}").error()
    assert f"{workdir}/checkpoints: no checkpoint of this workdir can be read" in error


def test_a_file_in_the_place_of_the_checkpoints(command, data, workdir):
    (workdir / "summary.json").unlink()
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints").write_text("")
    assert "checkpoints: a file: expected the folder" in train(command, data, workdir).error()


def test_a_claim_of_a_run_that_never_saved_is_replaced(command, data, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoints").write_text("")  # what fails after the claim
    for epochs in (1, 2):
        error = train(command, data, tmp_path, f"--config.train.max_epochs={epochs}").error()
        assert "checkpoints: a file" in error  # not: another configuration
        stored = json.loads((tmp_path / "config.json").read_text())
        assert stored["train"]["max_epochs"] == epochs


# --- verify, and what belongs to all ---------------------------------------------------------


def test_mistakes_in_fixtures(command, tmp_path):
    assert "no fixture given: expected FIXTURE.npz" in command(VERIFY).error()
    missing, text, bare = (tmp_path / name for name in ("missing.npz", "text.npz", "bare.npz"))
    text.write_text("no zip")
    with np.load(GOLDEN) as golden:
        np.savez(bare, **{k: golden[k] for k in golden.files if k != "meta"})
    assert f"{missing}: no such file: expected a fixture" in command(VERIFY, missing).error()
    assert f"{text}: damaged: " in command(VERIFY, text).error()
    assert f"{bare}: no `meta` in it" in command(VERIFY, bare).error()
    error = command(VERIFY, "--tolerance=small", GOLDEN).error()
    assert "--tolerance=small: expected a number" in error


@pytest.mark.parametrize("module", [TRAIN, EVALUATE, INSPECT, VERIFY, "oa_jax.quickstart"])
def test_help(command, module):
    result = command(module, "-h" if module == TRAIN else "--help")
    assert (result.status, result.err) == (0, "")
    assert f"python -m oa_jax {module.split('.')[-1]}" in result.out
    assert ("--config:" in result.out) == (module in (TRAIN, INSPECT))


def spawn(environment, *argv, **options):
    return subprocess.Popen(
        [sys.executable, "-m", *argv], cwd=ROOT, env=os.environ | environment, text=True, **options
    )


def test_a_process_of_its_own_agrees(environment, command):
    argv = (TRAIN, "--config=configs/abxi.py:size=books", "--workdir=nowhere")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = spawn(environment, *argv, **streams)
    out, err = process.communicate()
    assert Result(process.returncode, out, err) == command(*argv)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (
            "JAX_ENABLE_X64",
            "banana",
            "invalid truth value 'banana' for environment 'JAX_ENABLE_X64'",
        ),
        ("JAX_PLATFORMS", "foo", "JAX_PLATFORMS=foo: Unable to initialize backend 'foo'"),
    ],
)
def test_a_wrong_variable_of_jax_is_one_line(environment, variable, value, said, data, tmp_path):
    argv = (TRAIN, CONFIG, *SMALL, f"--config.data.dir={data}", f"--workdir={tmp_path / 'run'}")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = spawn(environment | {variable: value}, *argv, **streams)
    out, err = process.communicate()
    assert said in Result(process.returncode, out, err).error()
    assert not (tmp_path / "run" / "config.json").exists()


def test_closed_output(environment):
    process = spawn(
        environment,
        *(INSPECT, "--memory=false", PAIR),
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.close(1),
    )
    assert (process.communicate()[1], process.returncode) == ("", 0)


@pytest.mark.slow
def test_a_run_without_its_reader_that_is_told_to_leave(environment, tmp_path):
    """One run in two processes: `| head -n 4`, Ctrl-C, then SIGTERM twice, as `timeout` does."""
    changes = toy.SMALL | toy.OWN["abxi"]
    changes |= {"train.max_epochs": 10**6, "train.checkpoint_every": 10**6, "seeds": 1}
    changes |= {"train.quick_compile": True, "gca.positions": ()}
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    argv = [toy.ROOT / "tests" / "toys" / "toy_command.py", "train", f"--workdir={tmp_path}", PAIR]

    def start(until):
        process = subprocess.Popen(
            [sys.executable, *argv, *flags],
            cwd=ROOT,
            env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not (line := process.stdout.readline()).startswith(until):
            assert process.poll() is None, process.communicate()
        return process, line

    def rows():
        return (tmp_path / "metrics.jsonl").read_bytes().count(b"\n")

    process, _ = start(until="epoch   1")
    process.stdout.close()
    before = rows()
    while rows() < before + 3:  # it goes on
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    closed, leaving, left = process.stderr.read().splitlines()
    assert process.wait(120) == 130
    assert closed == "standard output is closed: going on without it"
    assert leaving == "interrupted: leaving after this epoch (again: at once)"
    saved = rows() - 1
    assert f"{tmp_path} is saved after epoch {saved}: the same command goes on" in left

    process, line = start(until="going on")
    assert line == f"going on after epoch {saved}\n"
    for _ in range(2):
        process.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert err.count("\n") == 1 and f"{tmp_path} is saved after epoch {saved + 1}: " in err
