"""Devices that need not be at hand: their public figures, and their compiler's view of them."""

import dataclasses
import importlib.util
import math
import os
import re

from oa_jax.errors import UserError

# Of matrix products: train.compute_dtype, or train.matmul_precision of float32 ones.
PRECISIONS = ("bfloat16", "default", "high", "highest")
GIGA, TERA, GIBI = 1e9, 1e12, 2**30
EXPECTED = "v5e:2x2, v6e:8x8, v5p:2x2x1, h100, h200, h100:8 (one node), h100:4x8 (four nodes)"


@dataclasses.dataclass(frozen=True)
class Device:
    """A device by its vendor's data sheet, dense figures.

    flops: a second, of products by PRECISIONS. A TPU makes float32 ones of one, three or six
    bfloat16 products; a GPU of TF32, TF32 and float32.
    memory: bytes.  bandwidth: of it, bytes a second.  link: bytes a second that a device sends to
    its neighbours; network: the same between nodes, where that is something else.
    axes: of a topology's shape.  clock: cycles a second, by the flops of a cycle of all its matrix
    units; None where their number is not public.
    """

    platform: str
    flops: tuple[float, float, float, float]
    memory: float
    bandwidth: float
    link: float
    network: float | None = None
    axes: int = 2
    clock: float | None = None


def _tpu(peak, memory, bandwidth, link, axes=2, units=0):
    """units: matrix units of 128 x 128."""
    flops = tuple(peak * TERA / passes for passes in (1, 1, 3, 6))
    clock = peak * TERA / (units * 128 * 128 * 2) if units else None
    return Device("tpu", flops, memory * GIBI, bandwidth * GIGA, link * GIGA, None, axes, clock)


def _hopper(memory, bandwidth):
    flops = tuple(peak * TERA for peak in (989.4, 494.7, 494.7, 66.9))
    network = 50 * GIGA  # a 400 Gb/s adapter a device
    return Device("cuda", flops, memory * GIGA, bandwidth * GIGA, 450 * GIGA, network)


# Cloud TPU's pages of each version; NVIDIA's data sheets of the SXM boards.
DEVICES = {
    "v5e": _tpu(197, 16, 819, 200, units=4),
    "v6e": _tpu(918, 32, 1640, 448),
    "v5p": _tpu(459, 95, 2765, 600, axes=3),
    "h100": _hopper(80, 3350),
    "h200": _hopper(141, 4800),
}
# What libtpu asks of a machine that is not a TPU's host.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# What XLA's GPU compiler asks of a chip, a GpuTargetConfigProto.
HOPPER = """
    platform_name: "CUDA"
    device_description_str: "{name}"
    dnn_version_info {{ major: 9 minor: 12 }}
    runtime_version {{ major: 13 }}
    gpu_device_info {{
      cuda_compute_capability {{ major: 9 minor: 0 }}
      core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
      memory_bandwidth: {bandwidth:.0f}  l2_cache_size: 52428800  device_memory_size: {memory:.0f}
      threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
      shared_memory_per_core: 233472  shared_memory_per_block: 49152
      shared_memory_per_block_optin: 232448
      registers_per_core_limit: 65536  registers_per_block_limit: 65536
      block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
    }}"""
# Platform -> (module of its compiler, what to install).
PLUGINS = {
    "tpu": ("libtpu", "jax[tpu]"),
    "cuda": ("jax_plugins.xla_cuda13", "jax-cuda13-plugin jax-cuda13-pjrt"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """kind: key of DEVICES.  shape: chips along each axis of a TPU slice; (nodes, GPUs of one)."""

    kind: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """`KIND` is one device; `KIND:AxB`. Raises UserError with what is expected."""
        kind, _, sizes = text.partition(":")
        is_grid = ":" not in text or re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes)
        if kind not in DEVICES or not is_grid:
            raise UserError(f"--topology={text}: expected one such as {EXPECTED}")
        device = DEVICES[kind]
        shape = tuple(int(n) for n in sizes.split("x")) if sizes else (1,) * device.axes
        if device.platform == "cuda" and len(shape) == 1:
            shape = (1, *shape)
        if len(shape) != device.axes:
            form = "x".join("AB" if device.axes == 2 else "ABC")
            raise UserError(f"--topology={text}: expected {kind}:{form}, such as {EXPECTED}")
        return cls(kind, shape)

    @property
    def device(self) -> Device:
        return DEVICES[self.kind]

    @property
    def n_devices(self) -> int:
        return math.prod(self.shape)

    @property
    def link(self) -> float:
        """Bytes a second that a device sends, over the slowest way between two of them."""
        several_nodes = self.device.network and self.shape[0] > 1
        return self.device.network if several_nodes else self.device.link

    def __str__(self):
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    def devices(self) -> tuple:
        """The devices to compile for. Raises UserError where the compiler for them is not
        installed, or knows no such topology."""
        from jax.experimental import topologies

        platform = self.device.platform
        module, packages = PLUGINS[platform]
        if not _is_installed(module):
            raise UserError(f"--topology={self}: its compiler is missing: pip install {packages}")
        if platform == "tpu":
            os.environ.update(TPU_ENVIRONMENT | os.environ)
            name, options = str(self), {}
            if self.n_devices == 1:
                options = {"chips_per_host_bounds": (1, 1, 1)}
        else:
            sizes = {"memory": self.device.memory, "bandwidth": self.device.bandwidth}
            grid = "x".join(map(str, (1, *self.shape)))
            options = {"target_config": HOPPER.format(name=self.kind, **sizes), "topology": grid}
            name = self.kind
        try:
            found = topologies.get_topology_desc(name, platform, **options)
        except Exception as error:  # of the compiler's library, in types of its own
            raise UserError(f"--topology={self}: refused by {module}: {error}") from None
        return tuple(found.devices)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False
