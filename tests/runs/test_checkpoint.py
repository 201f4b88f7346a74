"""Checkpoints: checksums, failed saves, and what of the storage library's complaints is left
unsaid, for as long as a read takes."""

import contextlib
import errno
import gc
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from oa_jax.engine import state
from oa_jax.errors import UserError
from oa_jax.runs import checkpoint
from oa_jax.runs.checkpoint import SUMS, Checkpoints


def some_states(n_seeds=2):
    def one(seed):
        params = {"w": jnp.arange(64.0) + seed}
        return state.create(seed, {}, lambda _: params, optax.scale_by_adam())

    return jax.vmap(one)(jnp.arange(n_seeds))


ABSTRACT = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), some_states()
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the steps 1 and 2."""
    folder = tmp_path_factory.mktemp("made") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for epoch in (1, 2):
            checkpoints.save(epoch, some_states(), {"train": float(epoch)})
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "checkpoints")


def newest(folder):
    """(epoch, what was said)."""
    said = []
    with Checkpoints(folder, say=said.append) as checkpoints:
        epoch, states, seconds = checkpoints.restore_newest(lambda n_seeds: ABSTRACT)
    assert seconds == {"train": float(epoch)}
    np.testing.assert_array_equal(states.params["w"], some_states().params["w"])
    return epoch, said


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def read(folder, epoch=2):
    return checkpoint.read(folder, epoch, ABSTRACT.params, best=False)[0]


def flip(path):
    """Two bytes in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    content[len(content) // 2 + 1] ^= 0xFF
    path.write_bytes(content)


def largest(step):
    return max(step.glob("state/**/d/*"), key=lambda path: path.stat().st_size)


def test_the_newest_step_comes_back_with_its_sums(made):
    assert newest(made) == (2, [])
    for step in ("1", "2"):
        check = ["sha256sum", "--check", "--strict", SUMS]
        result = subprocess.run(check, cwd=made / step, capture_output=True, text=True)
        assert result.returncode == 0 and "state/" in result.stdout, result


def test_half_a_step_of_a_killed_process_goes(folder):
    (folder / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert newest(folder) == (2, [])
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_step_of_a_version_without_sums_is_read(folder):
    (folder / "2" / SUMS).unlink()
    assert newest(folder) == (2, [])
    np.testing.assert_array_equal(read(folder)["w"], some_states().params["w"])


@pytest.mark.parametrize(
    ("damage", "words"),
    [(flip, "is not as it was saved"), (pathlib.Path.unlink, "is missing")],
    ids=["flipped bytes", "a missing file"],
)
def test_of_a_damaged_step_the_one_before_is_taken_and_said(folder, damage, words):
    damage(largest(folder / "2"))
    with pytest.raises(ValueError, match=words):
        read(folder)
    epoch, (said,) = newest(folder)
    assert epoch == 1 and said.startswith("checkpoint 2 cannot be read (state/") and words in said
    assert (folder / "2.unreadable").is_dir() and not (folder / "2").exists()
    flip(largest(folder / "1"))
    with pytest.raises(UserError, match="can be read .*not as it was"):
        newest(folder)


def test_a_failed_save_is_one_line_and_what_was_saved_stays(folder, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(checkpoint.files, "write", full)
    with pytest.raises(UserError) as error, Checkpoints(folder) as checkpoints:
        checkpoints.save(3, some_states(), {"train": 3.0})  # in the background
    assert str(error.value) == (
        f"{folder}: the checkpoint of epoch 3 cannot be saved: No space left on device: "
        "what was saved before stays"
    )
    monkeypatch.undo()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    assert newest(folder) == (2, [])


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints: a file: expected the folder"):
        Checkpoints(tmp_path / "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "halved", "halved without sums"])
def test_a_read_says_nothing_and_leaves_the_process_as_it_was(folder, kind, capfd):
    if kind != "whole":
        for path in folder.glob("*/*/d/*"):
            halve(path)
    if kind == "halved without sums":
        for path in folder.glob("*/" + SUMS):
            path.unlink()
    before = sys.stderr
    with contextlib.suppress(ValueError):
        read(folder)
    with contextlib.suppress(UserError):
        newest(folder)
    gc.collect()
    assert sys.stderr is before
    assert capfd.readouterr() == ("", "")


ABANDONED = """
import asyncio, gc, sys, warnings
from oa_jax.runs import checkpoint

async def fail():
    raise ValueError("damaged")

async def hold_on(loop):
    try:
        await loop.create_future()
    except GeneratorExit:
        await asyncio.sleep(0)

async def tidy_up(loop):
    try:
        await loop.create_future()
    finally:
        loop.call_soon(print)

def abandon_reads():
    # What a loop leaves behind that is closed over its tasks, as the storage library's is.
    loop = asyncio.new_event_loop()
    loop.create_future().set_exception(ValueError("damaged"))
    kept = [loop.create_task(fail())]
    kept += [loop.create_task(wait(loop)) for wait in (hold_on, tidy_up)]
    loop.run_until_complete(asyncio.sleep(0))
    fail()
    loop.close()
    raise OSError("damaged")

try:
    if sys.argv[1] == "quietly":
        checkpoint._quietly(abandon_reads)
    else:
        abandon_reads()
except (OSError, ValueError) as error:
    print(error)
gc.collect()
print(checkpoint._quietly(lambda: warnings.warn("something else") or "found"))
"""
LEFT = ("never retrieved", "Task was destroyed", "never awaited", "ignored GeneratorExit", "closed")


@pytest.mark.parametrize("how", ["quietly", "openly"])
def test_errors_of_abandoned_reads_are_not_told_and_others_are(how):
    command = [sys.executable, "-c", ABANDONED, how]
    result = subprocess.run(command, capture_output=True, text=True)
    reason = "OSError" if how == "quietly" else "damaged"
    assert result.stdout.splitlines() == [reason, "found"], result.stderr
    assert "something else" in result.stderr
    assert [words in result.stderr for words in LEFT] == [how == "openly"] * len(LEFT)
