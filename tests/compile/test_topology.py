"""Names of topologies, the figures of their devices, and what is said without a compiler."""

import importlib.util
import subprocess
import sys

import pytest

from oa_jax.compile import topology
from oa_jax.compile.topology import DEVICES, PLUGINS, Topology
from oa_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "shape", "n_devices"),
    [
        ("v5e", (1, 1), 1),
        ("v5e:2x2", (2, 2), 4),
        ("v6e:8x8", (8, 8), 64),
        ("v5p", (1, 1, 1), 1),
        ("v5p:2x2x1", (2, 2, 1), 4),
        ("h100", (1, 1), 1),
        ("h100:8", (1, 8), 8),
        ("h200:4x8", (4, 8), 32),
    ],
)
def test_names(text, shape, n_devices):
    found = Topology.parse(text)
    assert (found.kind, found.shape, found.n_devices) == (text.split(":")[0], shape, n_devices)
    assert Topology.parse(str(found)) == found


@pytest.mark.parametrize(
    "text", ["", "v5", "v5e:", "v5e:4", "v5e:2x2x2", "v5p:2x2", "h100:0", "h100:1x2x3", "v5e:2x-2"]
)
def test_other_names_are_refused(text):
    with pytest.raises(UserError, match=r"^--topology=.*: expected .*v5e:2x2"):
        Topology.parse(text)


def test_between_nodes_the_network_is_the_way():
    assert Topology.parse("h100:8").link == DEVICES["h100"].link
    assert Topology.parse("h100:2x8").link == DEVICES["h100"].network < DEVICES["h100"].link
    assert Topology.parse("v6e:8x8").link == DEVICES["v6e"].link


def test_no_precision_is_faster_than_a_coarser_one():
    for device in DEVICES.values():
        assert list(device.flops) == sorted(device.flops, reverse=True)
        assert len(device.flops) == len(topology.PRECISIONS)


@pytest.mark.parametrize(("text", "package"), [("v5e:2x2", "jax[tpu]"), ("h100", "jax-cuda13-")])
def test_without_a_compiler_one_line_names_the_package(monkeypatch, text, package):
    monkeypatch.setattr(topology, "_is_installed", lambda module: False)
    with pytest.raises(UserError) as caught:
        Topology.parse(text).devices()
    assert "\n" not in str(caught.value) and f"pip install {package}" in str(caught.value)


def test_a_module_whose_parent_is_missing_is_missing():
    assert topology._is_installed("json.decoder")
    assert not topology._is_installed("no_such_package.part")


ASK = """
import jax
jax.config.update("jax_platforms", "cpu")
from oa_jax.compile.topology import Topology
print(len(Topology.parse({text!r}).devices()))
"""


@pytest.mark.parametrize("text", ["v5e", "v5e:2x2", "v5p:2x2x1", "h100", "h100:2x8"])
def test_the_compilers_know_the_topology(text):
    module, packages = PLUGINS[Topology.parse(text).device.platform]
    if not topology._is_installed(module):
        pytest.skip(f"needs {packages}")
    command = [sys.executable, "-c", ASK.format(text=text)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.strip() == str(Topology.parse(text).n_devices), result.stderr


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs jax[tpu]")
def test_a_grid_that_does_not_exist_is_refused_in_a_line():
    with pytest.raises(UserError, match="^--topology=v5e:3x5: refused by libtpu"):
        Topology.parse("v5e:3x5").devices()
