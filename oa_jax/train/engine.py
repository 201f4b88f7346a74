"""Compiled programs over seeds: where the seed axis, devices, jit and donation are applied."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from oa_jax.train import state as state_lib
from oa_jax.train import step as step_lib
from oa_jax.train.state import State


class Engine:
    """The programs of one static configuration. Data are arguments, seeds are the leading axis.

    axis: "vmap" batches the seeds in every operation; "map" runs them one after the other inside
    the program, which is bitwise what separate runs give.
    """

    def __init__(self, settings: step_lib.Settings, axis: str):
        self.settings = settings
        self.axis = axis
        self.compile_seconds = 0.0
        self._programs: dict = {}
        self._counts = jnp.asarray(settings.task.slot_counts)

    def create(self, seeds, hparams) -> State:
        """Fresh states of all seeds; `hparams` leaves are (S,)."""
        args = (jnp.asarray(seeds, jnp.int32), hparams)
        return self._program("create", self._create, args)(*args)

    def abstract(self, seeds, hparams) -> State:
        """Shapes and types of `create`, without the arrays."""
        return jax.eval_shape(self._create, jnp.asarray(seeds, jnp.int32), hparams)

    def _create(self, seeds, hparams):
        init, optimizer = self.settings.backbone.init, self.settings.optimizer
        return jax.vmap(lambda s, h: state_lib.create(s, h, init, optimizer))(seeds, hparams)

    def capacity(self, seeds, epoch: int) -> tuple[int, ...]:
        """Slots of each packed list that hold every batch of `epoch` for all seeds of the run."""
        needed = jax.vmap(self.settings.task.slots_needed, in_axes=(None, 0, None))
        args = (self._counts, jnp.asarray(seeds, jnp.int32), jnp.asarray(epoch, jnp.int32))
        counts_SxN = np.asarray(self._program("slots", needed, args)(*args))
        return self.settings.task.capacity(counts_SxN.max(0))

    def epoch(self, states: State, arrays, capacity):
        """One epoch of every seed -> (states, reports). The old states are given up."""
        return self._over_seeds(*self._epoch(capacity), (states,), arrays, donate=True)

    def compile_epoch(self, states, arrays, capacity):
        """The compiled program of `epoch`; arguments may be shapes."""
        return self._compile(*self._epoch(capacity), (states,), arrays, donate=True)

    def _epoch(self, capacity):
        return ("epoch", capacity), functools.partial(step_lib.epoch, self.settings, capacity)

    def on_device(self, arrays, n_seeds: int):
        """The part of `arrays`, or what comes in its place, that is on the device in training."""
        return arrays

    def assess(self, states: State, arrays):
        """The report of `epoch` without training."""
        one = functools.partial(step_lib.assess, self.settings)
        return self._over_seeds("assess", one, (states.params,), arrays)

    def steps(self, states: State, arrays, capacity, n_steps: int):
        """The first batches of an epoch alone, for measuring -> (states, losses (S, n_steps)). The
        old states are given up."""
        return self._over_seeds(*self._steps(capacity, n_steps), (states,), arrays, donate=True)

    def compile_steps(self, states, arrays, capacity, n_steps: int):
        """The compiled program of `steps`; arguments may be shapes."""
        return self._compile(*self._steps(capacity, n_steps), (states,), arrays, donate=True)

    def _steps(self, capacity, n_steps):
        one = functools.partial(step_lib.steps, self.settings, capacity, n_steps)
        return ("steps", capacity, n_steps), one

    def final(self, params, rows, protocols, tables=None):
        """{protocol: Ranks (S, R)} and GCA sums of `params` (leaves with S) over `rows`."""

        def one(params, shared):
            rows, tables = shared
            settings = self.settings.on(tables)
            ranks = step_lib.all_ranks(settings, params, rows, protocols)
            return ranks, step_lib.probe_sums(settings, params, rows)

        return self._over_seeds(("final", protocols), one, (params,), (rows, tables))

    def _over_seeds(self, name, one, seeded, shared, donate=False):
        """Run `one` (a seed's values, shared values) for all seeds."""
        by_seed, everywhere = self._shardings(seeded)
        seeded, shared = jax.device_put(seeded, by_seed), jax.device_put(shared, everywhere)
        return self._compile(name, one, seeded, shared, donate)(*seeded, shared)

    def _compile(self, name, one, seeded, shared, donate=False):
        def program(*args):
            *seeded, shared = args
            if self.axis == "vmap":
                return jax.vmap(lambda *s: one(*s, shared))(*seeded)
            return jax.lax.map(lambda s: one(*s, shared), tuple(seeded))

        by_seed, everywhere = self._shardings(seeded)
        options = {
            "in_shardings": (*(by_seed for _ in seeded), everywhere),
            "out_shardings": by_seed,
            "donate_argnums": (0,) if donate else (),  # the states, whose buffers come back
        }
        return self._program(name, program, (*seeded, shared), **options)

    def _shardings(self, seeded):
        n_seeds = jax.tree.leaves(seeded)[0].shape[0]
        mesh = seed_mesh(n_seeds if self.axis == "vmap" else 1)
        return NamedSharding(mesh, P("seed")), NamedSharding(mesh, P())

    def _program(self, name, fn, args, **options):
        """`fn` compiled once per name and argument shapes; the seconds are counted."""
        shapes = tuple((a.shape, str(a.dtype)) for a in jax.tree.leaves(args))
        if (name, shapes) not in self._programs:
            begin = time.perf_counter()
            self._programs[name, shapes] = jax.jit(fn, **options).lower(*args).compile()
            self.compile_seconds += time.perf_counter() - begin
        return self._programs[name, shapes]


def seed_mesh(n_seeds: int) -> jax.sharding.Mesh:
    """A mesh (seed, data) with as many devices on `seed` as divide the number of seeds."""
    devices = jax.devices()
    size = max(n for n in range(1, len(devices) + 1) if n_seeds % n == 0)
    return jax.make_mesh(
        (size, 1), ("seed", "data"), axis_types=(AxisType.Auto,) * 2, devices=devices[:size]
    )


def take_seeds(tree, slots):
    """The states of the given slots, in that order."""
    return jax.tree.map(lambda a: a[np.asarray(slots)], tree)


def join_seeds(trees, order):
    """States of several groups of seeds as one, slot i of the result being row order[i]."""
    # Groups of different sizes may live on different devices: meet on all of those of the whole.
    everywhere = NamedSharding(seed_mesh(len(order)), P())
    trees = [jax.device_put(tree, everywhere) for tree in trees]
    return jax.tree.map(lambda *a: jnp.concatenate(a)[np.asarray(order)], *trees)


def resolve_axis(axis: str, width: int) -> str:
    """`auto`: vmap on accelerators and for small models, map for the others on a CPU.

    Measured on two cores with five seeds of ABXI: at width 64 an epoch by map takes 0.87 of the
    time by vmap and 0.6 of its memory.
    """
    if axis != "auto":
        return axis
    return "map" if jax.default_backend() == "cpu" and width >= 64 else "vmap"
