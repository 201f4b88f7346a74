"""What of the storage library's complaints about a damaged checkpoint is left unsaid."""

import asyncio
import gc
import logging
import sys
import types
import warnings

import pytest

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
    """What a loop leaves behind that is closed over its tasks, as the storage library's is."""
    loop = asyncio.new_event_loop()
    loop.create_future().set_exception(ValueError("damaged"))  # a future, failed
    failed = loop.create_task(fail())
    pending = [loop.create_task(wait(loop)) for wait in (hold_on, tidy_up)]
    loop.run_until_complete(asyncio.sleep(0))
    fail()  # never awaited
    loop.close()
    del failed, pending
    gc.collect()


@pytest.fixture
def told(caplog, monkeypatch):
    """Function (prepare) -> what Python logs, warns of and hooks when reads were abandoned after
    prepare(), and something else went wrong."""

    def tell(prepare):
        caplog.clear()
        hooked = []
        logger = logging.getLogger("asyncio")
        monkeypatch.setattr(logger, "filters", [])  # an earlier test may have read a checkpoint
        monkeypatch.setattr(sys, "unraisablehook", lambda u: hooked.append(str(u.exc_value)))
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            prepare()
            abandon_reads()
            logger.error("something else")
            logger.error("")
            warnings.warn("something else", RuntimeWarning, stacklevel=1)
            sys.unraisablehook(types.SimpleNamespace(exc_value="something else"))
        logged = {record.getMessage().partition("\n")[0] for record in caplog.records}
        return logged, {str(warning.message) for warning in warned}, set(hooked)

    return tell


def test_errors_of_abandoned_reads_are_not_told_and_others_are(told):
    other = {"something else"}
    retrieved = {f"{kind} exception was never retrieved" for kind in ("Future", "Task")}
    assert told(lambda: None) == (
        other | retrieved | {"", "Task was destroyed but it is pending!"},
        other | {"coroutine 'fail' was never awaited"},
        other | {"coroutine ignored GeneratorExit", "Event loop is closed"},
    )
    assert told(checkpoint._quieten_abandoned_reads.__wrapped__) == (other | {""}, other, other)


def test_a_second_read_adds_no_second_hook():
    checkpoint._quieten_abandoned_reads()
    hook = sys.unraisablehook
    checkpoint._quieten_abandoned_reads()
    assert sys.unraisablehook is hook
