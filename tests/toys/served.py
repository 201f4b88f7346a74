"""A command run in children of one process, which has imported what it needs: see commands/_server.

Used as `with served.commands("oa_jax.data", folder, "tensorflow_datasets") as run:`.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def commands(module, folder, *preloaded, path=""):
    """Function (*argv, module, **environment) -> Result, as of `python -m MODULE *argv`.

    path: a folder from which modules are imported before all others.
    """
    files = [str(folder / name) for name in ("out", "err")]
    argv = [sys.executable, str(TESTS / "commands" / "_server.py"), *preloaded]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    options["env"] = os.environ | {"PYTHONPATH": f"{path}:{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen(argv, **options) as server:

        def run(*argv, module=module, **environment):
            for path in files:
                pathlib.Path(path).write_text("")
            request = {"module": module, "argv": list(map(str, argv)), "cwd": str(TESTS.parent)}
            request["env"] = {"OA_DATA_DIR": ""} | {k: str(v) for k, v in environment.items()}
            request |= dict(zip(("stdout", "stderr"), files, strict=True))
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            status = int(server.stdout.readline())
            return Result(status, *(pathlib.Path(path).read_text() for path in files))

        yield run
        server.stdin.close()
