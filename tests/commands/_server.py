"""Runs commands as `python -m MODULE` would, without importing JAX anew for each of them.

Imports what the commands need, then forks a child per request: a line of JSON on standard input,
{"module", "argv", "cwd", "env", "stdout", "stderr"}; the child's exit status goes to standard
output. No backend of JAX is initialised here, as threads do not survive a fork.
"""

import gc
import importlib
import json
import os
import pathlib
import runpy
import signal
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What the commands import. Not the commands: they define flags, which can be done only once.
PRELOADED = (
    "oa_jax.commands.cli",
    "oa_jax.commands.report",
    "oa_jax.runs.run",
    "oa_jax.backbones.abxi.official",
)
TIMEOUT_S = 1800  # of a command that hangs; a busy machine can be very slow


def serve():
    sys.path[0] = str(ROOT)
    for name in (*PRELOADED, *sys.argv[1:]):  # more may be asked for; none that starts threads
        importlib.import_module(name)
    gc.freeze()  # a child that ends would copy all pages to look for garbage: 0.3 s of 0.4 s
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            return run(**request)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(module, argv, cwd, env, stdout, stderr):
    signal.alarm(TIMEOUT_S)
    os.environ.update(env)
    os.chdir(cwd)
    for path, stream in ((os.devnull, 0), (stdout, 1), (stderr, 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), stream)
    sys.argv = [module, *argv]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve()
