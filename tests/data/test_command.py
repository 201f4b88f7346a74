"""`python -m oa_jax data` as people call it."""

import pytest

from oa_jax.data import store


def error(result):
    assert result.returncode == 2 and "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.slow
def test_from_files_to_figures(run, small_pair, raw_files, tmp_path):
    raw = tmp_path / "raw"
    for path in small_pair.iterdir():
        raw_files.write(raw / f"{path.name}.gz", [path.read_bytes() + b"half a line"])
    where = (f"--data_dir={tmp_path}", f"--raw_dir={raw}")
    made = run("prepare", "beauty_elec", *where)
    assert (made.returncode, made.stderr) == (0, "")
    *lines, last = made.stdout.splitlines()
    assert last.startswith("beauty_elec: prepared: 30 sequences, 16 + 16 items, 720 events")
    assert lines[0] == (
        "ratings_Beauty.csv.gz: left out 1 malformed lines, the first is line 361: 'half a line'"
    )
    again = run("prepare", "beauty_elec", OA_DATA_DIR=str(tmp_path))
    assert again.stdout.startswith("beauty_elec: already prepared: 30 sequences")

    described = run("describe", "beauty_elec", where[0])
    assert described.returncode == 0 and "12.0 / 12 / 12" in described.stdout
    assert "A Beauty, B Electronics; split: leave_one_out" in described.stdout
    assert (tmp_path / "oa_pairs" / "beauty_elec" / "beauty_elec.png").stat().st_size > 10_000

    line = error(run("describe", "beauty_elec", where[0], f"--png={tmp_path / 'x.foo'}"))
    assert "x.foo: expected a name that ends in one of .avif, " in line or ".pdf, " in line
    described = run("describe", "beauty_elec", where[0], "--png=~/x.png", HOME=str(tmp_path))
    assert described.returncode == 0 and (tmp_path / "x.png").stat().st_size > 10_000

    checked = run("check", "beauty_elec", where[0])
    assert checked.returncode == 0 and "ok: records: all 30 equal" in checked.stdout
    assert "finding: files: ratings_Beauty.csv.gz: 1 malformed, line 361" in checked.stdout


def test_malformed_lines_are_told_also_where_too_little_is_left(run, raw_files, tmp_path):
    for name in ("ratings_Beauty.csv", "ratings_Electronics.csv"):
        raw_files.write(tmp_path / name, ["u1,i1,5.0,1", "half a line"])
    made = run("prepare", "beauty_elec", f"--data_dir={tmp_path}", f"--raw_dir={tmp_path}")
    assert "no events of domain A are left" in error(made)
    assert "ratings_Beauty.csv: left out 1 malformed lines, the first is line 2" in made.stdout


def test_list_says_what_is_there_and_what_is_missing(run, small_pair, tmp_path):
    listed = run("list", f"--data_dir={tmp_path}", f"--raw_dir={small_pair}")
    assert (listed.returncode, listed.stderr) == (0, "")
    words = " ".join(listed.stdout.split())
    assert "files found: ratings of 2014" in words
    assert "ratings_Books.csv (22,507,155 ratings, about 923 MB)" in words
    assert "cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/" in words


def test_a_damaged_set_is_one_line_and_the_others_are_listed(run, small_pair, tmp_path):
    folder = store.folder(tmp_path, "food_kitchen")
    folder.mkdir(parents=True)
    for content, expected in (("{}", "no field 'name'"), ("[", "not valid JSON")):
        (folder / store.METADATA).write_text(content)
        for argv in (("list",), ("check", "food_kitchen"), ("describe", "food_kitchen")):
            result = run(*argv, f"--data_dir={tmp_path}", f"--raw_dir={small_pair}")
            assert f"metadata.json: {expected}" in error(result)
            assert ("files found: ratings of 2014" in result.stdout) is (argv == ("list",))


def test_a_set_with_errors_has_status_1(run, small_pair, tmp_path):
    from oa_jax.data.prepare import prepare
    from oa_jax.data.texts import Reading

    prepare("beauty_elec", small_pair, tmp_path, Reading(), print)
    folder = store.folder(tmp_path, "beauty_elec")
    store.write_items(folder, [])
    checked = run("check", "beauty_elec", f"--data_dir={tmp_path}")
    assert checked.returncode == 1 and "error: items: digest" in checked.stdout


MISTAKES = {
    "no command": ((), "command=: expected one of list, prepare, describe, check, import"),
    "unknown command": (("make",), "command=make: expected one of list, prepare"),
    "no name": (("prepare",), "prepare: no name given: expected NAME of python -m oa_jax data"),
    "unknown name": (
        ("check", "books", "--data_dir=."),
        "check NAME=books: expected one of ",
    ),
    "a URL": (
        ("list", "--data_dir=gs://bucket/data"),
        "--data_dir=gs://bucket/data: a URL: expected",
    ),
    "one picture of two sets": (
        ("describe", "beauty_elec", "food_kitchen", "--png=x.png", "--data_dir=."),
        "--png=x.png: 2 sets: expected one set",
    ),
    "no folder": (("list",), "--data_dir: missing: expected a folder, or OA_DATA_DIR set"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line(run, case):
    argv, expected = MISTAKES[case]
    assert expected in error(run(*argv))


def test_missing_files_are_named_at_once(run, tmp_path):
    line = error(run("prepare", "movie_book", OA_DATA_DIR=str(tmp_path)))
    assert "found no amb_50_preprocessed.txt and 1 more in a folder below" in line
    assert "see https://github.com/DiMarzioBian/ABXI/tree/72e52c9/data/amb" in line
    line = error(run("describe", "movie_book", OA_DATA_DIR=str(tmp_path)))
    assert "not prepared: below" in line and "prepare movie_book --raw_dir=DIR" in line
    assert "--raw_dir=/no/where: no such folder" in error(
        run("prepare", "movie_book", "--raw_dir=/no/where", OA_DATA_DIR=str(tmp_path))
    )


def test_a_missing_extra_is_named(run, small_pair, tmp_path):
    argv = ("prepare", "beauty_elec", f"--data_dir={tmp_path}", f"--raw_dir={small_pair}")
    line = error(run(*argv, module="without_polars"))
    assert "polars is not installed: expected the extra `data`" in line
