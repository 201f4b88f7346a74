"""configs/FIELDS.md is what the command prints, and the command prints every field."""

import pathlib
import re
import subprocess
import sys

import pytest

from oa_jax.backbones import known
from oa_jax.configuration import fields_of

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def printed():
    command = [sys.executable, "-m", "oa_jax", "inspect", "--fields"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


def test_the_page_is_current(printed):
    page = (ROOT / "configs" / "FIELDS.md").read_text("utf-8")
    assert page == printed, "python -m oa_jax inspect --fields > configs/FIELDS.md"


@pytest.mark.parametrize("backbone", known.NAMES)
def test_every_field_of_every_backbone_has_a_row(printed, backbone):
    groups = dict(re.findall(r"^## `?([\w. ]+?)`?$\n\n((?:\|.*\n)+)", printed, re.M))
    for name, one in fields_of(known.fields(backbone)):
        group, _, field = name.rpartition(".")
        rows = [
            row
            for row in groups[group or "Of the whole"].splitlines()
            if row.startswith(f"| `{field}` |") and re.search(rf"\| (all|.*{backbone}.*) \|$", row)
        ]
        assert len(rows) == 1, name
        meaning = one.metadata.get("meaning", "the model")
        assert len(meaning) > 1 and meaning in rows[0].replace("\\|", "|"), name
