"""Several processes as one program: how they meet, what process 0 decides, how all of them leave.

Every process runs the same lines in the same order. What only one can do, such as writing a file,
process 0 does, and its answer or its error is that of all.
"""

import contextlib
import functools
import importlib.util
import json
import os
import re
import signal

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils

from oa_jax.errors import Interrupted, UserError

EXPECTED = "auto, off, or HOST:PORT,N,I: where process 0 listens, how many there are, which this is"
LOST = JaxRuntimeError, ValueError  # kinds of errors among which `is_lost` looks
LOST_S = 60  # without a sign of life for so long, a process is lost and the others end
# Variables of a process started by Slurm or by Open MPI, and of how many there are.
LAUNCHERS = (
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)


def start(text: str) -> None:
    """Meet the other processes, before anything runs on a device.

    text: `auto` asks Slurm, Open MPI, an indexed Kubernetes job or a TPU slice, and is a single
    process elsewhere. Raises UserError for a text that is none of `EXPECTED`, and where the
    processes don't meet.
    """
    # JAX's own handler of SIGTERM loses one that comes before the first epoch of a run that goes
    # on (its processes agree to leave after epoch 1): `Notice` takes its place.
    jax.config.update("jax_enable_preemption_service", False)
    options = {"heartbeat_timeout_seconds": LOST_S, "shutdown_timeout_seconds": LOST_S}
    match = re.fullmatch(r"([^,\s]+:\d+),([1-9]\d*),(\d+)", text)
    given = (match[1], int(match[2]), int(match[3])) if match else ()
    if text not in ("auto", "off") and not (match and given[2] < given[1]):
        raise UserError(f"--distributed={text}: expected {EXPECTED}")
    try:
        if match:
            jax.distributed.initialize(*given, cluster_detection_method="deactivate", **options)
        elif text == "auto" and _is_launched():
            jax.distributed.initialize(**options)
        elif text == "auto" and importlib.util.find_spec("libtpu"):
            with contextlib.suppress(ValueError):  # no TPU: nobody says how many processes
                jax.distributed.initialize(**options)
    except Exception as error:  # Kubernetes and TPUs are asked over HTTP: errors of any library
        raise UserError(f"--distributed={text}: the processes don't meet: {error}") from None


def _is_launched() -> bool:
    tasks = [int(os.environ.get(number, 1)) for which, number in LAUNCHERS if which in os.environ]
    return max(tasks, default=1) > 1 or "JOB_COMPLETION_INDEX" in os.environ


def several() -> bool:
    """Whether there is more than one process. Asks no device when there is none to meet."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_lost(error: BaseException | None) -> bool:
    """Whether `error` says that another process is gone: what waits for it waits in vain."""
    gone = isinstance(error, JaxRuntimeError) or (
        isinstance(error, ValueError) and "Gloo" in str(error)  # as JAX says it on CPUs
    )
    return gone and several()


def is_first() -> bool:
    """Whether this process writes files and talks."""
    return not several() or jax.process_index() == 0


def fetch(tree):
    """Arrays of devices as numpy arrays, whole, in every process."""
    if several():
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def first_does(method):
    """`method` as process 0 does it: what it returns, which must fit in JSON, and the UserError or
    OSError that it raises are those of all processes, which wait for it."""

    @functools.wraps(method)
    def shared(*args, **kwargs):
        if not several():
            return method(*args, **kwargs)
        answer = {}
        if is_first():
            try:
                answer["value"] = method(*args, **kwargs)
            except OSError as error:
                answer["error"] = f"{error.filename or 'input or output'}: {error.strerror}"
            except UserError as error:
                answer["error"] = str(error)
        answer = _from_first(answer)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["value"]

    return shared


def _from_first(answer):
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    buffer = text if is_first() else np.zeros(size, np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer))))


def check_equal(what: str, value) -> None:
    """Raise UserError unless all processes were given the same `value`, which fits in JSON."""
    mine = json.dumps(value, sort_keys=True)
    theirs = first_does(lambda: mine)()
    if several() and not fetch(np.array([mine == theirs])).all():
        raise UserError(f"{what}: the processes were given different ones: expected one for all")


class Notice:
    """A context that takes the wish that this program shall leave: SIGTERM, as the machine is about
    to be taken away, or Ctrl-C, to any of its processes.

    More of SIGTERM changes nothing, as `timeout` and Slurm send two; a second Ctrl-C does not wait:
    KeyboardInterrupt.
    """

    def __init__(self):
        self._received = 0
        self._before = {}

    def __enter__(self) -> "Notice":
        with contextlib.suppress(ValueError):  # not the main thread: nobody can send it there
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as of nohup
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_):
        for number, before in self._before.items():
            signal.signal(number, before)

    def _receive(self, number, _):
        if number == signal.SIGINT and self._received == number:
            raise KeyboardInterrupt
        if number == signal.SIGINT and is_first():  # not print, which may be what was interrupted
            os.write(2, b"interrupted: leaving after this epoch (again: at once)\n")
        self._received = number

    def holds(self) -> bool:
        """Whether to leave now. All processes ask after every epoch, and get the same answer."""
        return bool(fetch(np.array([self._received])).any())

    def error(self, message: str) -> Interrupted:
        """What to raise, once everything is saved."""
        return Interrupted(message, by_key=self._received == signal.SIGINT)


def leave_when_told(message: str) -> None:
    """From now on SIGTERM raises Interrupted(message) wherever no `Notice` takes it: once, as it is
    sent twice. For a command, with whose process that ends."""

    def receive(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Interrupted(message)

    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, receive)
