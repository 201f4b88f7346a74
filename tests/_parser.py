"""Parses command lines as the program does, without running what they ask for.

Imports what the commands need, then forks a child per request, as absl's flags can be defined only
once: a line of JSON on standard input, [module, word, …]; a line of JSON on standard output, what
the command says against it, "" if nothing.
"""

import ast
import contextlib
import importlib
import io
import json
import os
import pathlib
import runpy
import sys
import traceback

from absl import app

ROOT = pathlib.Path(__file__).resolve().parents[1]


def needed_modules() -> list[str]:
    """What the commands import, so that their forks need not. Not the commands themselves, which
    define flags; the modules of the analysis define theirs when asked to."""
    names = {f"analysis.{path.stem}" for path in (ROOT / "analysis").glob("[!_]*.py")}
    for path in (ROOT / "oa_jax" / "commands").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    known = {f"oa_jax.commands.{path.stem}" for path in (ROOT / "oa_jax" / "commands").glob("*.py")}
    return ["oa_jax.commands.cli", *sorted(names - known)]


def serve():
    sys.path[0] = str(ROOT)
    os.chdir(ROOT)
    for name in needed_modules():
        with contextlib.suppress(ImportError):  # a name of a module that is no module
            importlib.import_module(name)
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            said = complaint(*json.loads(line))
            os.write(writing, said.encode()[:60_000])
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            print(json.dumps(pipe.read()), flush=True)
        os.waitpid(child, 0)


def complaint(module, *argv) -> str:
    def parse_only(main, argv=None, flags_parser=None):
        app.define_help_flags()
        flags_parser(sys.argv)
        sys.exit(0)

    app.run = parse_only
    sys.argv = [module, *argv]
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        words = sys.stderr.getvalue() or (end.code if isinstance(end.code, str) else "")
        return "" if end.code in (0, None) else words.strip() or f"status {end.code}"
    except BaseException:
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    serve()
