import pathlib
import re

import pytest

from oa_jax.data import catalogue
from oa_jax.data.catalogue import SETS, find, missing


def test_every_source_has_its_function_files_and_page():
    import importlib

    for name, data_set in SETS.items():
        assert name == data_set.name and len(data_set.domains) == 2 and data_set.sources
        for source in data_set.sources:
            module, function = source.build.split(".")
            assert callable(getattr(importlib.import_module(f"oa_jax.data.{module}"), function))
            for file in source.files:
                assert file.page.startswith("https://") and not file.name.endswith(".gz")
                assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)


def test_every_hash_belongs_to_a_file():
    path = pathlib.Path(catalogue.__file__).with_name("sets.toml")
    listed = re.findall('sha256 = "(.*?)"', path.read_text())
    known = [f for s in SETS.values() for source in s.sources for f in source.files]
    assert {f.sha256 for f in known} - {None} == set(listed) and len(listed) == 28


@pytest.mark.parametrize("below", ["", "a", "a/b/c"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_files_are_found_together_and_packed(tmp_path, below, ending):
    source = SETS["beauty_elec"].sources[0]
    folder = tmp_path / below
    for name in ("other/abe_50_preprocessed.txt", "elsewhere/map_item_50.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert find(source, tmp_path) is None  # not in one folder
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.files[:2]:
        (folder / f"{file.name}{ending}").touch()
    expected = [folder / f"{file.name}{ending}" for file in source.files[:2]]
    assert find(source, tmp_path) == [*expected, None]
    (folder / "map_user_50.txt").touch()
    assert find(source, tmp_path)[2] == folder / "map_user_50.txt"


def test_too_deep_hidden_or_nowhere(tmp_path):
    source = SETS["elec_phone_amid"].sources[0]
    for below in ("a/b/c/d", ".hidden"):
        (tmp_path / below).mkdir(parents=True)
        for file in source.files:
            (tmp_path / below / file.name).touch()
    assert find(source, tmp_path) is None
    assert find(source, tmp_path / "none") is None


def test_what_is_missing_is_that_of_the_fullest_folder(tmp_path):
    source = SETS["llmcdsr_food_kitchen"].sources[1]
    for k, names in enumerate((source.files[:2], source.files[:5], source.files[5:])):
        (tmp_path / str(k)).mkdir()
        for file in names:
            (tmp_path / str(k) / file.name).touch()
    assert [f.name for f in missing(source, tmp_path)] == ["items_A.jsonl", "items_B.jsonl"]
    assert missing(source, tmp_path / "none") == list(source.files)
    assert missing(SETS["beauty_elec"].sources[0], None) == list(
        SETS["beauty_elec"].sources[0].files[:2]
    )
