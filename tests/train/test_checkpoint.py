"""What of the storage library's complaints about a damaged checkpoint is left unsaid."""

import logging
import sys

from oa_jax.train import checkpoint


def test_errors_of_abandoned_reads_are_not_told_and_others_are(caplog, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    checkpoint._quieten_abandoned_reads()
    logger = logging.getLogger("asyncio")
    try:
        logger.error("Task exception was never retrieved\nfuture: <Task finished …>")
        logger.error("something else")
    finally:
        logger.removeFilter(checkpoint._is_awaited)
    assert [record.getMessage() for record in caplog.records] == ["something else"]
