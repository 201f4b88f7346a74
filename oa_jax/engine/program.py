"""Compiled programs over seeds: where the seed axis, devices, jit and donation are applied."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from oa_jax.engine import compilation
from oa_jax.engine import mesh as mesh_lib
from oa_jax.engine import state as state_lib
from oa_jax.engine import step as step_lib
from oa_jax.engine.mesh import Layout
from oa_jax.engine.state import State


class Engine:
    """The programs of one static configuration. Data are arguments, seeds are the leading axis.

    axis: "vmap" batches the seeds in every operation; "map" runs them one after the other inside
    the program, which is bitwise what separate runs give. Both of the seeds of one device.
    mesh: as `--config.mesh`.  devices: those of another machine are enough to compile for it.
    """

    def __init__(self, settings: step_lib.Settings, axis: str, mesh: str = "", devices=None):
        self.settings = settings
        self.axis = axis
        self.layout = Layout.of(mesh, devices)
        self.compile_seconds = 0.0
        self._programs: dict = {}
        self._counts = jnp.asarray(settings.task.slot_counts)

    def create(self, seeds, hparams) -> State:
        """Fresh states of all seeds; `hparams` leaves are (S,)."""
        seeded = jnp.asarray(seeds, jnp.int32), hparams
        return self.over_seeds("create", self._create, seeded, ())

    def abstract(self, seeds, hparams) -> State:
        """Shapes and types of `create`, and where its arrays lie, without the arrays."""
        shapes = jax.eval_shape(jax.vmap(self._create), jnp.asarray(seeds, jnp.int32), hparams)
        where = self.layout.by_seed(shapes, len(seeds))
        struct = jax.ShapeDtypeStruct
        return jax.tree.map(lambda a, s: struct(a.shape, a.dtype, sharding=s), shapes, where)

    @functools.cached_property
    def n_parameters(self) -> int:
        """Trained numbers of one seed."""
        shapes = jax.eval_shape(self.settings.backbone.init, jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    def _create(self, seed, hparams, _=()):
        how = self.settings.backbone.init, self.settings.optimizer
        return self.layout.with_rows(state_lib.create(seed, hparams, *how), axis=0)

    def capacity(self, seeds, epoch, n_slots: int = 0) -> tuple[int, ...]:
        """Slots of each packed list that hold every batch of an epoch of all `seeds`.
        epoch: a number, or one for each seed. n_slots: of seeds in the program, if more."""
        needed = jax.vmap(self.settings.task.slots_needed, in_axes=(None, 0, 0))
        n_seeds = max(n_slots, len(seeds))
        both = np.asarray(seeds, np.int32), np.broadcast_to(np.int32(epoch), len(seeds))
        # In turn, up to the slots: one program, however few seeds are left in them.
        args = (self._counts, *(jnp.asarray(np.resize(of, n_seeds)) for of in both))
        counts_SxN = np.asarray(self._program("slots", needed, args)(*args))
        return self.layout.even(self.settings.task.capacity(counts_SxN.max(0)), n_seeds)

    def keep(self, arrays, n_seeds: int):
        """`arrays` where the programs of that many seeds read them, put there once."""
        return self._everywhere(arrays, n_seeds)

    def on_device(self, arrays, n_seeds: int):
        """The part of `arrays`, or what comes in its place, that is on the device in training."""
        return arrays

    def epoch(self, states: State, arrays, capacity):
        """One epoch of every seed -> (states, reports). The old states are given up."""
        return self.over_seeds(*self._epoch(states, arrays, capacity))

    def assess(self, states: State, arrays):
        """The report of `epoch` without training."""
        one = functools.partial(step_lib.assess, self.settings)
        return self.over_seeds("assess", one, (states.params,), arrays)

    def steps(self, states: State, arrays, capacity, n_steps: int):
        """As `epoch`, of its first batches alone, to measure -> (states, losses (S, n_steps))."""
        return self.over_seeds(*self._steps(states, arrays, capacity, n_steps))

    def final(self, params, rows, rankings, tables=None, probes=True):
        """{ranking: Ranks (S, R)} and GCA sums of `params` (leaves with S) over `rows`; without
        `probes` no sums."""
        return self.over_seeds(*self._final(params, rows, rankings, tables, probes))

    def compiled(self, program: str, *args):
        """The program behind `epoch`, `steps` or `final` of these arguments, or of their shapes."""
        return self._compile(*getattr(self, f"_{program}")(*args))

    # What to compile: name, function of one seed, values of each seed, shared ones, donation.

    def _epoch(self, states, arrays, capacity):
        # Compiled as a part of the program; asked for the shapes and for the branch, traced once.
        train = jax.jit(functools.partial(step_lib.epoch, self.settings, capacity))

        def unless_done(state, arrays):
            """Of seeds in turn, one that is done costs nothing; its report is of no meaning."""
            report = jax.eval_shape(train, state, arrays)[1]
            none = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), report)
            return jax.lax.cond(
                state.done, lambda state: (state, none), lambda state: train(state, arrays), state
            )

        # Not of seeds side by side: vmap would copy the branch's data for each of them.
        one = unless_done if self.axis == "map" else train
        return ("epoch", capacity), one, (states,), arrays, True

    def _steps(self, states, arrays, capacity, n_steps):
        one = functools.partial(step_lib.steps, self.settings, capacity, n_steps)
        return ("steps", capacity, n_steps), one, (states,), arrays, True

    def _final(self, params, rows, rankings, tables=None, probes=True):
        def one(params, shared):
            rows, tables = shared
            settings = self.settings.on(tables)
            ranks = step_lib.all_ranks(settings, params, rows, rankings)
            return ranks, step_lib.probe_sums(settings, params, rows) if probes else {}

        return ("final", rankings, probes), one, (params,), (rows, tables)

    def over_seeds(self, name, one, seeded, shared, donate=False):
        """Run `one` (a seed's values, shared ones), compiled once for each name, for all seeds."""
        n_seeds = _n_seeds(seeded)
        seeded = self._padded(seeded)
        seeded = mesh_lib.place(seeded, self.layout.by_seed(seeded, n_slots := _n_seeds(seeded)))
        shared = self._everywhere(shared, n_seeds)
        out = self._compile(name, one, seeded, shared, donate)(*seeded, shared)
        return out if n_slots == n_seeds else jax.tree.map(lambda a: a[:n_seeds], out)

    def _everywhere(self, shared, n_seeds):
        shared = self.layout.with_rows(shared, axis=0)
        return mesh_lib.place(shared, self.layout.shared(shared, n_seeds))

    def _padded(self, seeded):
        """Values of seeds with copies of the first behind them until they fill the mesh."""
        seeded = self.layout.with_rows(seeded, axis=1)
        return pad_seeds(seeded, self.layout.slots(_n_seeds(seeded)))

    def _compile(self, name, one, seeded, shared, donate=False):
        seeded, shared = self._padded(seeded), self.layout.with_rows(shared, axis=0)
        layout, n_slots = self.layout, _n_seeds(seeded)
        mesh = layout.mesh(n_slots)

        def program(*args):
            *seeded, shared = args
            if self.axis == "vmap":
                return jax.vmap(lambda *s: one(*s, shared))(*seeded)
            return jax.lax.map(lambda s: one(*s, shared), tuple(seeded))

        # A device runs the program of its own seeds, and so cannot wait for another's. The other
        # axes are left to the compiler, if they have more than a device.
        own = {name for name in mesh.axis_names if name == "seed" or mesh.shape[name] == 1}
        specs = (*(P("seed") for _ in seeded), P())
        program = jax.shard_map(
            program, mesh=mesh, in_specs=specs, out_specs=P("seed"), axis_names=own, check_vma=False
        )

        def options():
            # One sharding for all results, if no table among them is divided.
            out = jax.eval_shape(program, *seeded, shared) if layout.table_size > 1 else 0
            return {
                "in_shardings": (*layout.by_seed(seeded, n_slots), layout.shared(shared, n_slots)),
                "out_shardings": layout.by_seed(out, n_slots),
                "donate_argnums": (0,) if donate else (),  # the states, whose buffers come back
            }

        return self._program(name, program, (*seeded, shared), options)

    def _program(self, name, fn, args, options=dict):
        """`fn` compiled once per name and shapes, which is timed. options: makes those of `jit`."""
        shapes = tuple((a.shape, str(a.dtype)) for a in jax.tree.leaves(args))
        if (name, shapes) not in self._programs:
            begin = time.perf_counter()
            with self.settings.precision():
                lowered = jax.jit(fn, **options()).lower(*args)
            platform, quick = self.layout.devices[0].platform, self.settings.quick_compile
            self._programs[name, shapes] = compilation.compiled(lowered, platform, quick)
            self.compile_seconds += time.perf_counter() - begin
        return self._programs[name, shapes]


def _n_seeds(seeded) -> int:
    return jax.tree.leaves(seeded)[0].shape[0]


def pad_seeds(tree, n_slots: int):
    """Values, or their shapes, of seeds with copies of the first behind them."""
    n_seeds = _n_seeds(tree)
    if n_slots == n_seeds:
        return tree
    slots = np.pad(np.arange(n_seeds), (0, n_slots - n_seeds))
    if isinstance(jax.tree.leaves(tree)[0], jax.ShapeDtypeStruct):
        return jax.eval_shape(lambda tree: take_seeds(tree, slots), tree)
    return take_seeds(tree, slots)


@functools.partial(jax.jit, donate_argnums=0)
def put_seeds(tree, slots, values):
    """`tree` with the values of other seeds in the given slots. The old buffers are given up."""
    return jax.tree.map(lambda a, new: a.at[slots].set(new), tree, values)


# Programs of their own: leaf by leaf, a few hundred calls would keep the device waiting.
_take = jax.jit(lambda tree, slots: jax.tree.map(lambda a: a[slots], tree))


def take_seeds(tree, slots):
    """The states of the given slots, in that order."""
    return _take(tree, np.asarray(slots))


@jax.jit
def join_seeds(trees):
    """States of several groups of seeds as one, in buffers of its own also of a single group."""
    return jax.tree.map(lambda *a: jnp.copy(jnp.concatenate(a)), *trees)


def resolve_axis(axis: str) -> str:
    """`auto`: vmap on accelerators, map on a CPU.

    Measured on one core with five seeds, medians of interleaved epochs: by map they take 0.86 of
    the time by vmap at width 32 of ABXI, 0.93 at 16, 0.93 to 0.96 of the small sizes of the others;
    at width 64 0.87, and 0.6 of its memory.
    """
    if axis != "auto":
        return axis
    return "map" if jax.default_backend() == "cpu" else "vmap"
