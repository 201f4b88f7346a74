"""What the pages say is there: commands and flags, fields, files, tests, links.

A block of commands is run by bash with a stand-in for each program, so that loops and variables
are what a shell makes of them; the command lines that come out are parsed, never run.
"""

import ast
import functools
import importlib.util
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import textwrap

import pytest

import oa_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROOMS = ("configs", "launch", "oa_jax", "analysis")
PAGES = [
    ROOT / "README.md",
    *(page for room in ROOMS for page in sorted((ROOT / room).rglob("*.md"))),
]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
# What the pages name before it is there.
PENDING = ()
OPEN = "…"  # what a reader fills in

IS_COMMANDS = r"^\s*(\w+=\S* +)*(python3? -m|launch/|pip install|sbatch |mpirun )"
PROGRAMS = ("python", "pip", "sbatch", "mpirun")
# In one write: two of them may run side by side.
STAND_IN = """(IFS=$'\\x1f'; set -- "{}" "$@"; printf '%s\\x1f\\x1e' "$*" >&3)\n"""
# Script -> the command that its arguments go to.
PASSED_ON = dict.fromkeys(("local.sh", "processes.sh", "slurm.sbatch", "tpu_vm.sh"), "train")
PASSED_ON["quickstart.sh"] = "quickstart"
GROUPS = "train|data|model|gca|evaluate|quirks"


# --- what a page holds ---------------------------------------------------------------------------


def blocks(text: str) -> tuple[list[tuple[str, str]], str]:
    """[(language, code)] of the fenced and indented blocks, and the text without them."""
    found = []

    def take(match):
        found.append((match["language"] or "", textwrap.dedent(match["code"])))
        return "\n"

    text = re.sub(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", take, text, flags=re.M | re.S)
    indented = r"(?<=\n\n)(?P<code>(?: {4}.*\n|\n(?= {4}))+)(?P<language>)"
    return found, re.sub(indented, take, text)


def spans(text: str) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


@functools.cache
def commands(code: str, folder: pathlib.Path) -> tuple[tuple[str, ...], ...]:
    """The command lines of a block of shell, as a shell reads them. Raises ValueError."""
    shutil.copytree(ROOT / "launch", folder / "launch", dirs_exist_ok=True)
    for script in (folder / "launch").iterdir():
        script.write_text("#!/bin/bash\n" + STAND_IN.format("$0"))
        script.chmod(0o755)
    functions = "".join(f"{name}() {{ {STAND_IN.format(name)}}}\n" for name in PROGRAMS)
    words = folder / "words"
    shell = f"exec 3>{words}; PATH=; set -u\n{functions}{code}\nwait\n"
    result = subprocess.run(
        ["/bin/bash", "-c", shell], cwd=folder, capture_output=True, text=True, timeout=30
    )
    if result.returncode or result.stderr:
        raise ValueError(f"bash: {result.stderr.strip() or result.returncode}")
    lines = words.read_text().split("\x1e")[:-1]
    return tuple(tuple(line.split("\x1f")[:-1]) for line in lines)


# --- what is there -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parse():
    """Function (module, word, …) -> what the command says against its arguments, "" if nothing."""
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "_parser.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    @functools.cache
    def ask(*words):
        server.stdin.write(json.dumps(words) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield ask
    server.stdin.close()
    server.wait()


@functools.cache
def experiments() -> tuple:
    """The configuration of every file of configs/."""
    found = []
    for path in CONFIGS:
        spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.append(module.get_config())
    return tuple(found)


def is_field(name: str) -> bool:
    def holds(config):
        for part in name.split("."):
            if part not in config:
                return False
            config = config[part]
        return True

    return any(map(holds, experiments()))


@functools.cache
def known_flags() -> frozenset[str]:
    """Flags of all commands, and those of the scripts in launch/."""
    sources = [
        p.read_text() for room in ("oa_jax", "analysis") for p in (ROOT / room).rglob("*.py")
    ]
    defined = re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", "\n".join(sources))
    scripts = "\n".join(p.read_text() for p in (ROOT / "launch").iterdir())
    return frozenset(defined) | set(re.findall(r"--([a-z][\w-]*)", scripts)) | {"help", "config"}


def anchors(page: pathlib.Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


# --- problems of a page --------------------------------------------------------------------------


def of_command(words, parse) -> list[str]:
    """What is wrong with a command line: its module, its flags, its files."""
    program, *words = words
    words = [word for word in words if word not in (OPEN, "&")]
    if program == "mpirun":
        return of_command(words[words.index("python") :], parse)
    if program == "sbatch":
        program, *words = [word for word in words if not word.startswith(("--nodes", "--array"))]
    if program == "pip":
        wanted = [w for word in words for w in re.findall(r"^\.\[(.+)\]$", word)]
        extras = (ROOT / "pyproject.toml").read_text()
        return [f"extra {w}" for w in wanted if not re.search(rf"^{w} = \[", extras, flags=re.M)]
    if program == "python":
        if words[0] != "-m":
            return [] if (ROOT / words[0]).exists() else [f"python {words[0]}: no such file"]
        return of_module(words[1:], parse)
    script = ROOT / "launch" / pathlib.Path(program).name
    if not script.exists():
        return [f"{program}: no such script"]
    if script.name in PASSED_ON:
        flags = [word for word in words if word.startswith("--")]
        is_sweep = script.name == "slurm.sbatch" and flags[:1] and flags[0].startswith("--study")
        return of_module(["oa_jax", "sweep" if is_sweep else PASSED_ON[script.name], *flags], parse)
    return [f"{program}: no {w}" for w in words if w.split("=")[0] not in script.read_text()]


def of_module(words, parse) -> list[str]:
    module, *argv = words
    if module.split(".")[0] not in ("oa_jax", "analysis"):
        return []
    if OPEN not in "".join(word for word in argv if word.startswith("--config=")):
        said = [parse(module, *argv)]
    else:  # any experiment that has the fields will do
        choices = [f"--config={path.relative_to(ROOT)}" for path in CONFIGS]
        filled = [[c if w.startswith("--config=") else w for w in argv] for c in choices]
        said = [parse(module, *argv) for argv in filled]
    return [] if "" in said else [f"{' '.join(words)}: {said[0]}"]


def of_span(span, page, parse) -> list[str]:
    """What is wrong with words set as code."""
    if span.startswith("python -m ") and not re.search(r"[|<]|\b[A-Z]{3,}\b(?!=)", span):
        return of_command(shlex.split(span), parse)
    if field := re.match(r"--config\.([a-z_.0-9]+)", span):
        return [] if is_field(field[1].rstrip(".")) else [f"{span}: no such field"]
    if flag := re.match(r"--(?:no)?([a-z][\w-]*)", span):
        known = {flag[1], f"no{flag[1]}"} & known_flags()
        return [] if known else [f"{span}: no command has it"]
    if test := re.fullmatch(r"([\w/]+\.py)::(\w+)", span):
        file = ROOT / "tests" / test[1]
        there = file.exists() and f"def {test[2]}(" in file.read_text()
        return [] if there else [f"{span}: no such test"]
    if re.match(rf"({'|'.join((*ROOMS, 'tests'))})/[\w./*-]+$", span):
        pattern = span.rstrip("/").replace("NAME", "*")
        there = span in PENDING or list(ROOT.glob(pattern))
        return [] if there else [f"{span}: no such file"]
    if re.match(rf"({GROUPS})\.[a-z_.0-9]+(=.*)?$", span) and not span.endswith((".py", ".txt")):
        return [] if is_field(span.split("=")[0]) else [f"{span}: no such field"]
    return []


def of_link(target, page) -> list[str]:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if file.is_relative_to(ROOT) and str(file.relative_to(ROOT)) in PENDING:
        return []
    if not file.exists():
        return [f"{target}: no such file"]
    return [] if not anchor or anchor in anchors(file) else [f"{target}: no such heading"]


def problems(text: str, page: pathlib.Path, parse, folder: pathlib.Path) -> list[str]:
    found, (code_blocks, prose) = [], blocks(text)
    for language, code in code_blocks:
        if language == "python":
            found += of_python(code)
        elif re.search(IS_COMMANDS, code, flags=re.M):
            try:
                lines = commands(code, folder)
            except ValueError as error:
                found.append(f"{error}: {code}")
                continue
            found += [problem for words in lines for problem in of_command(words, parse)]
    for span in spans(prose):
        found += of_span(span, page, parse)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        found += [] if target.startswith("http") else of_link(target, page)
    return found


def of_python(code: str) -> list[str]:
    """Names of the public face that a block of Python uses and that are not there."""
    used = {
        node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id == "oa"
    }
    public = getattr(oa_jax, "__all__", used)  # no face yet: nothing to compare with
    return [f"oa.{name}: not public" for name in sorted(used - set(public))]


# --- tests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page, parse, tmp_path):
    assert problems(page.read_text(), page, parse, tmp_path) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_commands_of_an_experiment(path, parse, tmp_path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert problems(text, path, parse, tmp_path) == []


def test_commands_that_the_quickstart_ends_with(parse):
    text = (ROOT / "launch" / "quickstart.sh").read_text().replace("$runs", "runs/quickstart")
    lines = re.findall(r"^  \$VENV_PYTHON (-m .*)$", text, flags=re.M)
    assert len(lines) == 3
    for line in lines:
        assert of_command(["python", *shlex.split(line)], parse) == []


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


# A page that names what is not there, and what is said of it.
WRONG = {
    "\n\n    python -m oa_jax report runs/a --no_such_flag\n": "--no_such_flag: no such flag",
    "\n\n    for g in none early; do\n      python -m oa_jax train \\\n"
    "        --config=configs/abxi.py:gca=$g --workdri=a\n    done\n": "--workdri: no such flag",
    "\n```sh\npython -m oa_jax rules --config=configs/abxi.py --ot=a\n```\n": "--ot: no such flag",
    "\n\n    python -m oa_jax train --config=configs/abxi.py:pari=a\n": "argument 'pari'",
    "\n\n    python -m oa_jax train --config=… --config.train.lr=1\n": "train.lr: no such field",
    "\n\n    python -m oa_jax train --config=configs/abxy.py\n": "abxy.py: no such file",
    "\n\n    python -m oa_jax trian --config=configs/abxi.py\n": "trian: no such command",
    "\n\n    python -m analysis table --runs=a --metric=a --what=b\n": "--what: no such flag",
    "\n\n    launch/local.sh --config=configs/abxi.py --workdr=a\n": "--workdr: no such flag",
    "\n\n    OA_DATA_DIR=DIR launch/gpu.sh abxy\n": "launch/gpu.sh: no abxy",
    "\n\n    launch/gpus.sh\n": "No such file",
    "\n\n    pip install -e '.[analyses]'\n": "extra analyses",
    "\n\n    python -m oa_jax report $nowhere\n": "unbound variable",
    "see `python -m oa_jax inspect --no_such_flag`": "no such flag",
    "with `--no_such_flag=3`": "no command has it",
    "with `--config.model.no_such=3`": "no such field",
    "with `train.no_such=3`": "no such field",
    "in `oa_jax/nn/no_such.py`": "no such file",
    "by `nn/test_gca.py::test_no_such`": "no such test",
    "[there](launch/no_such.md)": "no such file",
    "[there](launch/README.md#no-such)": "no such heading",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_not_there_is_found(text, parse, tmp_path):
    found = problems(text, ROOT / "README.md", parse, tmp_path)
    assert found and all(WRONG[text] in problem for problem in found)
