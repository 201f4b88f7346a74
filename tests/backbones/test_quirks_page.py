"""Every quirk that the code names is explained on the backbones' page, in its backbone's table."""

import dataclasses
import pathlib
import re

import pytest

from oa_jax.backbones import known

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "oa_jax" / "backbones" / "README.md"
# Rooms that serve one official code; the others may name a quirk of any backbone.
ROOMS = {
    "abxi": ("oa_jax/backbones/abxi", "configs/abxi.py"),
    "llm4cdsr": ("oa_jax/backbones/llm4cdsr", "configs/llm4cdsr.py", "oa_jax/text"),
    "cdsrnp": ("oa_jax/backbones/cdsrnp", "configs/cdsrnp.py"),
}


def sections(text: str) -> dict[str, str]:
    """{backbone: the part of the page below its heading}."""
    parts = re.split(r"^## (.+)$", text, flags=re.M)
    return {name.lower(): body for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def listed(section: str) -> dict[str, str]:
    """{first cell: row} of the tables of a section."""
    rows = re.findall(r"^\| *([^|]+?) *\|.*$", section, flags=re.M)
    lines = re.findall(r"^\|.*$", section, flags=re.M)
    return dict(zip(rows, lines, strict=True))


def numbers(text: str) -> set[str]:
    """Q1, Q2, … of a text, from `Q1` as well as from `q1_name`."""
    return {f"Q{n}" for n in re.findall(r"\b[Qq](\d+)(?=\b|_)", text)}


def source(*places: str) -> str:
    files = [f for p in places for f in ((ROOT / p).rglob("*.py") if "." not in p else [ROOT / p])]
    assert files
    return "\n".join(file.read_text() for file in files)


def missing(page: str, backbone: str, text: str) -> set[str]:
    return numbers(text) - set(listed(sections(page)[backbone]))


@pytest.mark.parametrize("backbone", ROOMS)
def test_quirks_of_a_room_are_in_its_table(backbone):
    assert missing(PAGE.read_text(), backbone, source(*ROOMS[backbone])) == set()


@pytest.mark.parametrize("backbone", known.NAMES)
def test_every_switch_has_its_row(backbone):
    page = sections(PAGE.read_text())
    assert backbone in page, f"no section of {backbone} in {PAGE}"
    rows = listed(page[backbone])
    for one in dataclasses.fields(known.fields(backbone)().quirks):
        number = next(iter(numbers(one.name)), "–")
        assert f"`{one.name}`" in rows[number], one.name


def test_quirks_of_the_shared_rooms_are_in_some_table():
    page, shared = PAGE.read_text(), source("oa_jax")
    assert (
        set.intersection(*(missing(page, name, shared) for name in ("abxi", "llm4cdsr"))) == set()
    )


def test_choices_of_the_reconstruction_are_listed():
    """Each field of CDSRNP's model has its row, as there is no official code to look into."""
    cells = " ".join(listed(sections(PAGE.read_text())["cdsrnp"]))
    names = [one.name for one in dataclasses.fields(known.fields("cdsrnp")().model)]
    assert [name for name in names if f"`{name}`" not in cells] == []


def test_a_number_that_no_table_has_is_found():
    text = PAGE.read_text()
    without = re.sub(r"^\| Q3 \|.*\n", "", text, flags=re.M)
    code = source(*ROOMS["abxi"])
    assert missing(without, "abxi", code) == {"Q3"}
    assert missing(text, "abxi", "as q77_something, see Q78") == {"Q77", "Q78"}
