"""`python -m analysis COMMAND --runs=DIR[,DIR…]|GLOB --out=DIR`.

Each command is the module of that name: functions that return frames, `define_flags()` for its
own flags if any, and `section(runs, out, options)`, its part of the page, which writes its frames
into `out`. One that does more has `command(runs, out, say)`, which returns an exit status.
Installed, the package is `oa_jax_analysis`.
"""

import importlib
import importlib.util
import sys

from absl import flags

from oa_jax import files
from oa_jax.commands import cli
from oa_jax.errors import UserError

COMMANDS = {
    "orthogonality": "statistics of X, X' and Y from checkpoints, with null controls",
    "correlate": "does the statistic go with ranking quality?",
    "verdicts": "results that would refute the mechanism, and what the runs say",
    "intervene": "what happens to quality when X' is replaced in a trained model?",
    "scaling": "quality against parameters, parameter ratio at equal quality",
    "table": "Table 1 with intervals, beside the published values",
    "phase": "gain and angle over two fields of the configuration, as heat maps",
    "factors": "what one change of the configuration does to the angle, and what it costs",
    "trajectory": "statistics and metrics over training",
    "report": "one HTML page and a folder of figures with all of the above",
}
PACKAGES = ("numpy", "scipy", "statsmodels", "polars", "matplotlib")


def load(name: str):
    """The module of a command. Raises UserError when a package of the extra is missing."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            expected = "expected the extra `analysis` (pip install 'oa-jax[analysis]')"
            raise UserError(f"{package}: not installed: {expected}")
    return importlib.import_module(f".{name}", __package__)


def main(arguments) -> int:
    name = arguments[0] if arguments else None
    if name not in COMMANDS or len(arguments) > 1:
        found = repr(arguments[-1]) if arguments else "none"
        raise UserError(f"COMMAND: found {found}: expected one of {', '.join(COMMANDS)}")
    module = load(name)  # polars too is of the extra
    from .page import tell
    from .runs import check_metric, find_runs, notes

    spec, folder = (cli.given(flag, "a folder") for flag in ("runs", "out"))
    runs, left_out = find_runs(spec)
    out = files.local(folder, "--out")
    for run in runs:
        if out.resolve().is_relative_to(run.path.resolve()):
            raise UserError(f"--out={out}: lies in the workdir {run.path}: expected another folder")
    for line in left_out + notes(runs):
        cli.say(f"note: {line}")
    check_metric(flags.FLAGS.metric, runs)
    if hasattr(module, "command"):
        return module.command(runs, out, cli.say)
    return tell(module.section(runs, out, flags.FLAGS), out, cli.say)


def start(argv: list[str]) -> None:
    """Define the flags of the command in `argv` and run it."""
    flags.DEFINE_string("runs", None, "Workdirs, or a folder of workdirs: DIR[,DIR…] or a GLOB.")
    flags.DEFINE_string("out", None, "Folder for the results; made when missing.")
    meaning = "Test metric, of sampled candidates; ndcg@10/full: of all items. table: --metrics."
    flags.DEFINE_string("metric", "ndcg@10", meaning)
    flags.DEFINE_integer("draws", 2000, "Bootstrap draws.", lower_bound=100)
    flags.FLAGS.set_gnu_getopt(True)  # flags may stand on both sides of COMMAND
    name = next((word for word in argv if word in COMMANDS), None)
    lines = [f"  {command:14} {what}" for command, what in COMMANDS.items()]
    head = f"python -m {__package__} {name or 'COMMAND'} --runs=DIR[,DIR…]|GLOB --out=DIR [--flags]"
    sys.modules["__main__"].__doc__ = "\n".join([head, "", *([] if name else lines)])
    try:
        if name:
            getattr(load(name), "define_flags", lambda: None)()
            # Let --help show the flags of the analysis' modules, not of this one alone.
            for module, found in flags.FLAGS.flags_by_module_dict().items():
                for flag in found if module.startswith(f"{__package__}.") else ():
                    flags.declare_key_flag(flag.name)
    except UserError as error:
        cli.fail(error)
    cli.run(main, words=True)


if __name__ == "__main__":
    start(sys.argv[1:])
