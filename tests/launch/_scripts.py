"""Running the launch scripts, with stand-ins for the programs that they call."""

import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"


def script(name, *argv, path=None, timeout=60, launch=LAUNCH, **variables):
    """The finished process of a script, with `path` before PATH."""
    environment = os.environ | {"OA_DATA_DIR": ""} | variables
    if path:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    command = ["bash", str(launch / name), *map(str, argv)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=timeout
    )


def stand_in(folder, name, body):
    """An executable file that writes its arguments to NAME.calls, then does `body`."""
    file = folder / name
    file.write_text(f'#!/usr/bin/env bash\necho "$@" >>"{folder}/{name}.calls"\n{body}\n')
    file.chmod(0o755)
    return file


def calls(folder, name):
    file = folder / f"{name}.calls"
    return file.read_text().splitlines() if file.exists() else []
