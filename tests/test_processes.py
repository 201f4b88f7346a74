"""One process among none: what is said about --distributed, and the notice to leave."""

import os
import signal

import numpy as np
import pytest

from oa_jax import processes
from oa_jax.errors import Interrupted, UserError

WRONG = ["", "on", "host", "host:1", "host:1,2", "host:1,0,0", "host:1,2,2", "host:x,2,0", "1,2,0"]


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_text_is_one_line(text):
    with pytest.raises(UserError, match="^--distributed=.*: expected auto, off, or HOST:PORT,N,I"):
        processes.start(text)


def test_launchers_are_recognised(monkeypatch):
    for name in (*sum(processes.LAUNCHERS, ()), "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    assert not processes._is_launched()
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert not processes._is_launched()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not processes._is_launched()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert processes._is_launched()
    monkeypatch.delenv("SLURM_PROCID")
    assert not processes._is_launched()
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    assert processes._is_launched()


def test_whatever_a_cluster_does_not_answer_is_one_line(monkeypatch):
    class HTTPError(Exception):
        """An error of a library that we don't know."""

    def initialize(**_):
        raise HTTPError("connection refused")

    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(UserError, match="^--distributed=auto: .* don't meet: connection refused$"):
        processes.start("auto")


def test_a_single_process_is_the_first_and_does_everything():
    processes.start("off")
    assert processes.is_first() and not processes.several()
    assert processes.first_does(lambda a: a + 1)(2) == 3
    processes.check_equal("--config", {"seeds": 3})
    np.testing.assert_array_equal(processes.fetch({"a": np.arange(3)})["a"], [0, 1, 2])


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture
def handlers():
    """Handlers of the two signals, as of a command in the foreground; put back after the test."""
    found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's `&` ignores it
    yield found | {signal.SIGINT: signal.default_int_handler}
    for number, handler in found.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_notice_holds_once_the_signal_came_and_the_handlers_are_put_back(handlers, number):
    with processes.Notice() as notice:
        assert not notice.holds()
        send(number)
        assert notice.holds()
        assert notice.error("saved").by_key == (number == signal.SIGINT)
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_more_of_sigterm_changes_nothing_and_a_second_ctrl_c_does_not_wait(handlers, capfd):
    with processes.Notice() as notice:
        for _ in range(3):
            send(signal.SIGTERM)
        send(signal.SIGINT)
        assert notice.holds() and "leaving after this epoch" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_what_is_ignored_stays_ignored(handlers):
    """As of nohup, or a shell's `command &`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with processes.Notice() as notice:
        send(signal.SIGINT)
        assert not notice.holds()


def test_a_command_leaves_at_once_where_no_epoch_is_under_way(handlers):
    processes.leave_when_told("nothing is lost")
    with processes.Notice() as notice:
        send(signal.SIGTERM)
        assert notice.holds()
    with pytest.raises(Interrupted, match="nothing is lost"):
        send(signal.SIGTERM)
    send(signal.SIGTERM)  # the second of the two that `timeout` sends


def test_who_is_lost_is_told_from_other_errors(monkeypatch):
    gloo = ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")
    assert not processes.is_lost(gloo)  # alone there is nobody to lose
    monkeypatch.setattr(processes, "several", lambda: True)
    assert processes.is_lost(gloo) and processes.is_lost(processes.JaxRuntimeError("gone"))
    assert not processes.is_lost(ValueError("a number")) and not processes.is_lost(None)
