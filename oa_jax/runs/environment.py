"""What a result depends on beside its configuration: env.json."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax

import oa_jax
from oa_jax.experiment import Experiment

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections")


def environment(experiment: Experiment) -> dict:
    """Versions, devices, commit and fingerprints of data and candidates."""
    return {
        "oa-jax": oa_jax.__version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": [f"{d.platform}: {d.device_kind}" for d in jax.devices()],
        "platform_version": jax.devices()[0].client.platform_version,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "processes": jax.process_count(),
        "mesh": dict(experiment.engine.layout.mesh(len(experiment.seeds)).shape),
        "seed_axis": experiment.engine.axis,
        "commit": _commit(),
        "fingerprints": experiment.identity(),
    }


def _commit() -> str | None:
    """The source's commit, where the package runs from a checkout."""
    root = pathlib.Path(oa_jax.__file__).parent.parent
    try:
        of = f"--git-dir={root / '.git'}", f"--work-tree={root}"  # no repository further above
        command = ["git", *of, "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
