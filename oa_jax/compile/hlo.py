"""What a compiled program does, read off its HLO text: matrix flops, memory traffic, collectives.

`cost_analysis` of a compiled program counts the body of a loop once, and says nothing at all for a
GPU. Here a loop counts as often as it turns. All numbers are of one device, as the text is.
"""

import dataclasses
import functools
import math
import re

import numpy as np

COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"}
COLLECTIVES |= {"collective-permute", "collective-broadcast"}
# Names of values, and what moves nothing.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "domain"}
FREE |= {"partition-id", "replica-id", "opt-barrier", "while", "conditional", "call", "async-start"}
FREE |= {"async-done", "async-update", "copy-done", "send-done", "recv-done", "reshape"}
FREE |= {"slice-done"}
READS_A_PART = {"dynamic-slice", "slice", "gather"}
# Which array of the tuple is the result: the start of a pair names its operand too.
RESULT_OF_START = {"copy-start": 0, "slice-start": 1, "all-gather-start": 1}
RESULT_OF_START |= {"collective-permute-start": 1}
# A TPU's compiler writes an asynchronous collective into the fusion that starts it, again into each
# that runs beside it, and into the one that ends it. All name its chain; the first and the last
# have one of these calls.
CHAIN, CHAIN_START, CHAIN_END = 'chain_id="', '"AsyncCollectiveStart"', '"AsyncCollectiveDone"'

OP_NAME = r'op_name="([^"]*)"'
# Of an operation's name: what says nothing, and parts of a step, said where no layer is.
CONTROL = {"while", "body", "cond", "closed_call", "branch_fun", "norm"}
SCOPES = {"batch", "loss", "optimizer", "validation"}

ARRAY = re.compile(r"([a-z]+(\d+)|pred)\[([\d,]*)\](?:\{([^}]*)\})?")
INSTRUCTION = re.compile(r"\s+(ROOT )?%(\S+) = (.+)")
OPCODE = re.compile(r"([a-z][a-z0-9-]*)\(")
COMPUTATION = re.compile(r"(ENTRY )?%(\S+) \(.*\{$")


@dataclasses.dataclass(frozen=True)
class Array:
    """Dimensions, bytes with the padding of a TPU's tiles, and bytes in the device's main memory:
    none of an array that lies in a TPU's vector memory, which is written as layout S(1)."""

    dims: tuple[int, ...]
    size: int
    traffic: int

    @classmethod
    def parse(cls, kind: str, width: str | None, dims: str, layout: str) -> "Array":
        """Of a match of `ARRAY`. A tile T(8,128) pads the last two axes in the order of memory,
        which the layout names from the last one on."""
        dims = tuple(int(n) for n in dims.split(",") if n)
        padded = list(dims)
        if tile := re.search(r"T\(([\d,]+)\)", layout):
            tiles = [int(n) for n in tile[1].split(",")]
            minor = [int(n) for n in layout.partition(":")[0].split(",") if n]
            for axis, of in zip(minor, reversed(tiles), strict=False):
                padded[axis] = -(-dims[axis] // of) * of
        size = math.prod(padded) * max(1, int(width or 8) // 8)
        return cls(dims, size, size if "S(" not in layout or "S(0)" in layout else 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    arrays: tuple[Array, ...]  # of the result; several for a tuple
    operands: tuple[str, ...]
    attributes: str  # of a constant or parameter, first its value or number and a bracket
    is_root: bool

    @classmethod
    def parse(cls, root: str | None, name: str, rest: str) -> "Instruction":
        # A tuple's shape is in brackets of its own, and layouts hold brackets too.
        end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
        opcode = OPCODE.search(rest, end)
        close = _closing(rest, opcode.end() - 1)
        arguments = rest[opcode.end() : close]
        start = opcode.end() if opcode[1] in ("constant", "parameter") else close + 1
        shapes = ARRAY.finditer(rest[: end + 1])
        arrays = [Array.parse(*match.groups(default="")) for match in shapes]
        operands = tuple(re.findall(r"%([\w.-]+)", arguments))
        return cls(name, opcode[1], tuple(arrays), operands, rest[start:], bool(root))

    def attribute(self, pattern: str) -> str | None:
        match = re.search(pattern, self.attributes)
        return match and match[1]

    def called(self, key: str) -> str:
        """The computation that it runs."""
        return self.attribute(rf"\b{key}=%([\w.-]+)")

    @property
    def number(self) -> int | None:
        """Of a parameter; the value of a constant that is a whole number."""
        match = re.match(r"(\d+)\)", self.attributes)
        return match and int(match[1])

    @property
    def size(self) -> int:
        return sum(array.size for array in self.arrays)

    @property
    def traffic(self) -> int:
        return sum(array.traffic for array in self.arrays)


Scope = dict[str, Instruction]  # a computation


@dataclasses.dataclass
class Cost:
    """flops of matrix products; bytes moved to and from memory; {kind: (times, bytes)} of
    collectives, bytes of all times together; loops whose number of turns is not in the text and
    which were counted once.  places: {part of the model: bytes}, see `place_of`.  cycles: what a
    TPU's compiler expects its kernels to take, one after another; unestimated: kernels of which it
    says nothing, gathers and scatters."""

    flops: float = 0
    traffic: float = 0
    collectives: dict[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    unknown_loops: int = 0
    places: dict[str, float] = dataclasses.field(default_factory=dict)
    cycles: float = 0
    unestimated: int = 0

    def add(self, other: "Cost", times: int = 1) -> None:
        self.flops += times * other.flops
        self.traffic += times * other.traffic
        self.cycles += times * other.cycles
        self.unestimated += times * other.unestimated
        self.unknown_loops += other.unknown_loops
        for place, size in other.places.items():
            self.places[place] = self.places.get(place, 0) + times * size
        for kind, (n, size) in other.collectives.items():
            before = self.collectives.get(kind, (0, 0))
            self.collectives[kind] = (before[0] + times * n, before[1] + times * size)


class Program:
    """A compiled program's text, by computation. Raises ValueError for what is no HLO module."""

    def __init__(self, text: str):
        self.computations: dict[str, Scope] = {}
        self.entry, current = None, {}
        for line in text.splitlines():
            if header := COMPUTATION.match(line):
                current = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif match := INSTRUCTION.match(line):
                current[match[2]] = Instruction.parse(*match.groups())
        if self.entry is None:
            raise ValueError("no ENTRY computation: expected the text of an HLO module")

    def cost(self) -> Cost:
        """Of the whole program."""
        return self._cost(self.entry)

    def loop(self, turns: int) -> Cost | None:
        """One turn of the costliest loop that turns so often, None if there is none."""
        found = [
            self._cost(one.called("body"))
            for scope in self.computations.values()
            for one in scope.values()
            if one.opcode == "while" and self._turns(one) == turns
        ]
        return max(found, key=lambda cost: (cost.flops, cost.traffic), default=None)

    @functools.cache  # noqa: B019  a program lives as long as its report
    def _cost(self, name: str) -> Cost:
        """Of a computation that runs as it stands, not as a fusion."""
        total, scope = Cost(), self.computations[name]
        for one in scope.values():
            if one.opcode == "while":
                turns = self._turns(one)
                total.unknown_loops += turns is None
                total.add(self._cost(one.called("body")), 1 if turns is None else turns)
            elif one.opcode in ("call", "async-start"):
                total.add(self._cost(one.called("(?:to_apply|calls)")))
            elif one.opcode == "conditional":
                branches = re.findall(r"%([\w.-]+)", one.attributes.split("metadata")[0])
                costs = [self._cost(b) for b in branches if b in self.computations]
                total.add(max(costs, key=lambda c: c.traffic, default=Cost()))
            else:
                total.add(self._within(one, scope))
                if one.opcode not in FREE:
                    moved, place = self._traffic(one, scope), place_of(one.attribute(OP_NAME) or "")
                    total.add(Cost(traffic=moved, places={place: moved}))
                    cycles = one.attribute(r'"estimated_cycles":"(\d+)"')
                    total.cycles += int(cycles or 0)
                    total.unestimated += cycles is None
        return total

    def _within(self, one: Instruction, scope: Scope) -> Cost:
        """Flops and collectives of one instruction, and of all that is fused into it."""
        cost, kind = Cost(), one.opcode.removesuffix("-start")
        if one.opcode == "fusion":
            inner = self.computations[one.called("calls")]
            for part in inner.values():
                cost.add(self._within(part, inner))
        elif one.opcode == "dot":
            cost.flops = _dot_flops(one, scope, r"lhs_contracting_dims=\{([\d,]*)\}")
        elif one.opcode == "convolution":
            cost.flops = _convolution_flops(one, scope)
        elif one.opcode == "custom-call" and "$" in (one.attribute(r'target="([^"]*)"') or ""):
            # A library's matrix product.
            cost.flops = _dot_flops(one, scope, r'"lhs_contracting_dimensions":\[([\d,"]*)\]')
        elif kind in COLLECTIVES and not _goes_on(one, scope):
            result = RESULT_OF_START.get(one.opcode)
            cost.collectives[kind] = (1, one.size if result is None else one.arrays[result].size)
        return cost

    def _turns(self, loop: Instruction) -> int | None:
        """How often a while loop turns: as annotated, or the bound that its condition names."""
        if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition = self.computations[loop.called("condition")].values()
        root = next(one for one in condition if one.is_root)
        constants = (one.number for one in condition if one.opcode == "constant")
        bounds = [bound for bound in constants if bound is not None]
        is_count = "direction=LT" in root.attributes or root.opcode == "fusion"
        return bounds[0] if is_count and len(bounds) == 1 else None

    def _traffic(self, one: Instruction, scope: Scope) -> int:
        """Bytes that one instruction reads and writes."""
        if one.opcode == "fusion":
            inner = self.computations[one.called("calls")]
            parameters = [part for part in inner.values() if part.opcode == "parameter"]
            read = sum(self._read(parameter, inner) for parameter in parameters)
            return read + self._written(next(i for i in inner.values() if i.is_root), inner)
        operands = (scope[name] for name in dict.fromkeys(one.operands) if name in scope)
        read = sum(self._read_by(one, operand, scope) for operand in operands)
        return read + self._written(one, scope)

    def _read(self, parameter: Instruction, inner: Scope) -> int:
        """Bytes of a fusion's parameter that are read: a part where every use takes a part."""
        uses = [one for one in inner.values() if parameter.name in one.operands]
        read = sum(self._read_by(use, parameter, inner) for use in uses)
        return min(read, parameter.traffic)

    def _read_by(self, use: Instruction, operand: Instruction, scope: Scope) -> int:
        """Bytes of `operand` that `use` reads."""
        first, whole = use.operands[0] == operand.name, operand.traffic
        if use.opcode == "tuple" or CHAIN_END in use.attributes or _goes_on(use, scope):
            return 0  # it is passed on
        if use.opcode in READS_A_PART and first:
            return min(use.size, whole)
        if use.opcode == "slice-start":
            return min(use.arrays[1].size, whole)
        if use.opcode == "dynamic-update-slice" and first:
            return 0  # in place
        if use.opcode == "scatter" and first:  # the rows that it touches
            return min(scope[use.operands[-1]].size, whole)
        if use.opcode == "bitcast" and not use.is_root:
            return self._read(use, scope)
        if use.opcode == "fusion":
            inner = self.computations[use.called("calls")]
            parameters = {one.number: one for one in inner.values() if one.opcode == "parameter"}
            at = [k for k, name in enumerate(use.operands) if name == operand.name]
            return min(sum(self._read(parameters[k], inner) for k in at), whole)
        return whole

    def _written(self, root: Instruction, scope: Scope) -> int:
        """Bytes that `root` writes: of an update in place, the part that changes."""
        if root.opcode in RESULT_OF_START:
            return root.arrays[RESULT_OF_START[root.opcode]].traffic
        if root.opcode == "tuple":
            parts = [scope[name] for name in root.operands]
            return sum(self._written(part, scope) for part in parts if part.opcode != "parameter")
        if CHAIN_START in root.attributes:
            return self._written(scope[root.operands[0]], scope)
        if CHAIN_END in root.attributes or _goes_on(root, scope):
            return 0
        if root.opcode == "bitcast" and root.operands[0] in scope:
            return min(self._written(scope[root.operands[0]], scope), root.traffic)
        if root.opcode in ("dynamic-update-slice", "scatter"):
            part = scope[root.operands[1 if root.opcode == "dynamic-update-slice" else -1]]
            return min(part.size, root.traffic)
        return root.traffic


def place_of(op_name: str) -> str:
    """Where in the model an operation stands: of `jit(program)/while/body/jvp(ABXI)/ffn/up/dot` it
    is "ffn up", of its gradient "ffn up, backward". Streams and blocks are not told apart."""
    words = []
    for part in re.split(r"/(?![^(]*\))", op_name)[:-1]:  # the last is the operation
        word = re.sub(r"_(x|[A-Z]|\d+)(?=_|$)", "", part).lower()
        if re.fullmatch("[a-z_]+", word) and word not in CONTROL and word not in words:
            words.append(word)
    words = words[1:] if words[1:] and words[0] in SCOPES else words
    back = ", backward" if "transpose(" in op_name else ""
    return (" ".join(words) or "elsewhere") + back


def _goes_on(one: Instruction, scope: Scope) -> bool:
    """Whether this is a collective that another fusion started."""
    if CHAIN not in one.attributes:
        return False
    uses = (other for other in scope.values() if one.name in other.operands)
    return not any(CHAIN_START in use.attributes for use in uses)


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"{text[:60]}: expected a closing bracket")


def _dot_flops(one: Instruction, scope: Scope, contracted: str) -> int:
    """2 x output x contracted axes, which the attribute `contracted` lists."""
    found = one.attribute(contracted)
    if found is None:
        return 0
    left = scope[one.operands[0]].arrays[0].dims
    depth = math.prod(left[int(n)] for n in re.findall(r"\d+", found))
    return 2 * math.prod(one.arrays[0].dims) * depth


def _convolution_flops(one: Instruction, scope: Scope) -> int:
    """2 x batch x output features x input features of the kernel x pairs of places that meet.

    A TPU's compiler writes matrix products as convolutions, batched ones with a dilated window.
    """
    left, right = (scope[name].arrays[0].dims for name in one.operands[:2])
    out = one.arrays[0].dims
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes).groups()
    groups = int(one.attribute(r"batch_group_count=(\d+)") or 1)
    window = (one.attribute(r"window=\{([^}]*)\}") or "").split()
    window = {name: values.split("x") for name, values in (part.split("=") for part in window)}
    pairs = 1
    for k, label in enumerate(filter(str.isdigit, labels[0])):
        sizes = (a[of.index(label)] for a, of in zip((left, right, out), labels, strict=True))
        low = window["pad"][k].split("_")[0] if "pad" in window else 0
        names = ("stride", "lhs_dilate", "rhs_dilate")
        steps = (window[name][k] if name in window else 1 for name in names)
        pairs *= _meeting(*sizes, int(low), *map(int, steps))
    features = out[labels[2].index("f")] * right[labels[1].index("i")]
    return 2 * left[labels[0].index("b")] // groups * features * pairs


@functools.cache
def _meeting(size, kernel, places, low, stride, dilate, kernel_dilate) -> int:
    """Pairs (place of the output, place of the kernel) that meet an input and not padding."""
    start, count = stride * np.arange(places) - low, 0
    for k in range(kernel):
        at = start + k * kernel_dilate
        count += int(np.sum((at >= 0) & (at <= (size - 1) * dilate) & (at % dilate == 0)))
    return count
