"""`prepare` that dies as by kill -9 at a place of its own: NAME RAW_DIR DATA_DIR PLACE."""

import os
import signal
import sys

from oa_jax.data import prepare, store
from oa_jax.data.texts import Reading


def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def half(self, built, generate=prepare.OaPairs._generate_examples):
    for user, example in generate(self, built):
        if user == 15:
            die()
        yield user, example


if __name__ == "__main__":
    name, raw, data, where = sys.argv[1:]
    if where == "among the records":
        prepare.OaPairs._generate_examples = half
    if where == "at the items":
        store.write_items = die
    if where == "before the rename":
        prepare.os.replace = die
    if where == "after the rename":
        sync = prepare._sync
        prepare._sync = lambda path: die() if path.parent.name == "oa_pairs" else sync(path)
    prepare.prepare(name, raw, data, Reading(), print)
