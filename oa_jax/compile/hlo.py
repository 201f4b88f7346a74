"""What a compiled program does, read off its HLO text: matrix flops, memory traffic, collectives.

`cost_analysis` of a compiled program counts the body of a loop once, and says nothing at all for a
GPU. Here a loop counts as often as it turns. All numbers are of one device, as the text is.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4}
WIDTHS |= {"f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Names of values, and what moves nothing.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "domain"}
FREE |= {"partition-id", "replica-id", "opt-barrier", "while", "conditional", "call", "async-start"}
FREE |= {"async-done", "async-update", "copy-done", "send-done", "recv-done", "reshape"}
READS_A_PART = {"dynamic-slice", "slice", "gather"}
# Which array of the tuple is the result: the start of a pair names its operand too.
RESULT_OF_START = {"copy-start": 0, "all-gather-start": 1, "collective-permute-start": 1}
# A TPU's compiler writes an asynchronous collective into the fusion that starts it, again into each
# that runs beside it, and into the one that ends it. All name its chain; the first and the last
# have one of these calls.
CHAIN, CHAIN_START, CHAIN_END = 'chain_id="', '"AsyncCollectiveStart"', '"AsyncCollectiveDone"'

ARRAY = re.compile(r"([a-z]+\d+|pred)\[([\d,]*)\](?:\{([^}]*)\})?")
INSTRUCTION = re.compile(r"\s+(ROOT )?%(\S+) = (.+)")
OPCODE = re.compile(r"([a-z][a-z0-9-]*)\(")
COMPUTATION = re.compile(r"(ENTRY )?%(\S+) \(.*\{$")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a shape: dimensions, bytes, and whether it lies in the device's main memory
    (not in a TPU's vector memory, which the compiler writes as layout S(1))."""

    dims: tuple[int, ...]
    size: int
    is_in_memory: bool

    @property
    def traffic(self) -> int:
        return self.size if self.is_in_memory else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    arrays: tuple[Array, ...]  # of the result; several for a tuple
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def attribute(self, pattern: str) -> str | None:
        match = re.search(pattern, self.attributes)
        return match and match[1]


@dataclasses.dataclass
class Cost:
    """flops of matrix products; bytes moved to and from memory; {kind: (times, bytes)} of
    collectives, bytes of all times together; loops whose number of turns is not in the text and
    which were counted once."""

    flops: float = 0
    traffic: float = 0
    collectives: dict = dataclasses.field(default_factory=dict)
    unknown_loops: int = 0

    def add(self, other: Cost, times: int = 1) -> None:
        self.flops += times * other.flops
        self.traffic += times * other.traffic
        self.unknown_loops += other.unknown_loops
        for kind, (n, size) in other.collectives.items():
            before = self.collectives.get(kind, (0, 0))
            self.collectives[kind] = (before[0] + times * n, before[1] + times * size)


class Program:
    """A compiled program's text, by computation."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, current = None, {}
        for line in text.splitlines():
            header = COMPUTATION.match(line)
            if header:
                current = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif match := INSTRUCTION.match(line):
                instruction = _instruction(*match.groups())
                current[instruction.name] = instruction
        if self.entry is None:
            raise ValueError("no ENTRY computation: expected the text of an HLO module")

    def cost(self) -> Cost:
        """Of the whole program."""
        return self._cost(self.entry)

    def loop(self, turns: int) -> Cost | None:
        """One turn of the costliest loop that turns so often, None if there is none."""
        found = [
            self._cost(self._called(instruction, "body"))
            for computation in self.computations.values()
            for instruction in computation.values()
            if instruction.opcode == "while" and self._turns(instruction) == turns
        ]
        return max(found, key=lambda cost: (cost.flops, cost.traffic), default=None)

    @functools.cache  # noqa: B019  a program lives as long as its report
    def _cost(self, name: str) -> Cost:
        """Of a computation that runs as it stands, not as a fusion."""
        total, scope = Cost(), self.computations[name]
        for instruction in scope.values():
            opcode = instruction.opcode
            if opcode == "while":
                turns = self._turns(instruction)
                total.unknown_loops += turns is None
                body = self._cost(self._called(instruction, "body"))
                total.add(body, 1 if turns is None else turns)
            elif opcode in ("call", "async-start"):
                total.add(self._cost(self._called(instruction, "(?:to_apply|calls)")))
            elif opcode == "conditional":
                branches = re.findall(r"%([\w.-]+)", instruction.attributes.split("metadata")[0])
                costs = [self._cost(b) for b in branches if b in self.computations]
                total.add(max(costs, key=lambda c: c.traffic, default=Cost()))
            else:
                total.add(self._within(instruction, scope))
                if opcode not in FREE:
                    total.traffic += self._traffic(instruction, scope)
        return total

    def _within(self, instruction, scope) -> Cost:
        """Flops and collectives of one instruction, and of all that is fused into it."""
        opcode, cost = instruction.opcode, Cost()
        if opcode == "fusion":
            inner = self.computations[self._called(instruction, "calls")]
            for part in inner.values():
                cost.add(self._within(part, inner))
        elif opcode == "dot":
            cost.flops = _dot_flops(instruction, scope, "lhs_contracting_dims=", r"\{([\d,]*)\}")
        elif opcode == "convolution":
            cost.flops = _convolution_flops(instruction, scope)
        elif opcode == "custom-call" and "$" in (instruction.attribute(r'target="([^"]*)"') or ""):
            contracted = r'\[([\d,"]*)\]'  # a library's matrix product
            cost.flops = _dot_flops(instruction, scope, '"lhs_contracting_dimensions":', contracted)
        elif _goes_on(instruction, scope):
            pass
        elif (kind := opcode.removesuffix("-start")) in COLLECTIVES:
            result = RESULT_OF_START.get(opcode)
            arrays = instruction.arrays if result is None else instruction.arrays[result:][:1]
            cost.collectives[kind] = (1, sum(array.size for array in arrays))
        return cost

    def _turns(self, loop) -> int | None:
        """How often a while loop turns: as annotated, or the bound that its condition names."""
        known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        if known:
            return int(known)
        condition = self.computations[self._called(loop, "condition")]
        root = next(i for i in condition.values() if i.is_root)
        bounds = [i for i in condition.values() if i.opcode == "constant"]
        whole = [b for b in bounds if re.match(r"\d+\)", b.attributes)]
        is_count = "direction=LT" in root.attributes or root.opcode == "fusion"
        return int(whole[0].attributes.split(")")[0]) if is_count and len(whole) == 1 else None

    def _called(self, instruction, key) -> str:
        return instruction.attribute(rf"\b{key}=%([\w.-]+)")

    def _traffic(self, instruction, scope) -> int:
        """Bytes that one instruction reads and writes."""
        if instruction.opcode == "fusion":
            inner = self.computations[self._called(instruction, "calls")]
            parameters = [i for i in inner.values() if i.opcode == "parameter"]
            read = sum(self._read(parameter, inner) for parameter in parameters)
            return read + self._written(next(i for i in inner.values() if i.is_root), inner)
        operands = (scope[name] for name in dict.fromkeys(instruction.operands) if name in scope)
        read = sum(self._read_by(instruction, operand, scope) for operand in operands)
        return read + self._written(instruction, scope)

    def _read(self, parameter, inner) -> int:
        """Bytes of a fusion's parameter that are read: a part where every use takes a part."""
        uses = [i for i in inner.values() if parameter.name in i.operands]
        read = sum(self._read_by(use, parameter, inner) for use in uses)
        return min(read, _traffic_of(parameter))

    def _read_by(self, use, operand, scope) -> int:
        """Bytes of `operand` that `use` reads."""
        first = use.operands[0] == operand.name
        whole = _traffic_of(operand)
        if use.opcode == "tuple" or CHAIN_END in use.attributes or _goes_on(use, scope):
            return 0  # it is passed on
        if use.opcode in READS_A_PART and first:
            return min(sum(a.size for a in use.arrays), whole)
        if use.opcode == "dynamic-update-slice" and first:
            return 0  # in place
        if use.opcode == "scatter" and first:  # the rows that it touches
            return min(_traffic_of(scope[use.operands[-1]], anywhere=True), whole)
        if use.opcode == "bitcast":
            return self._read(use, scope) if not use.is_root else whole
        if use.opcode == "fusion":
            inner = self.computations[self._called(use, "calls")]
            order = [name for name in use.operands]
            parameters = {
                int(i.attributes.split(")")[0]): i
                for i in inner.values()
                if i.opcode == "parameter"
            }
            at = [k for k, name in enumerate(order) if name == operand.name]
            return min(sum(self._read(parameters[k], inner) for k in at), whole)
        return whole

    def _written(self, root, scope) -> int:
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
            inner = scope[root.operands[0]]
            return min(self._written(inner, scope), _traffic_of(root))
        if root.opcode in ("dynamic-update-slice", "scatter"):
            part = scope[root.operands[1 if root.opcode == "dynamic-update-slice" else -1]]
            return min(_traffic_of(part, anywhere=True), _traffic_of(root))
        return _traffic_of(root)


def _goes_on(instruction, scope) -> bool:
    """Whether this is a collective that another fusion started."""
    if CHAIN not in instruction.attributes:
        return False
    uses = (other for other in scope.values() if instruction.name in other.operands)
    return not any(CHAIN_START in use.attributes for use in uses)


def _traffic_of(instruction, anywhere=False) -> int:
    return sum(a.size if anywhere else a.traffic for a in instruction.arrays)


def _instruction(root, name, rest) -> Instruction:
    # A tuple's shape is in brackets of its own, and layouts hold brackets too.
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    opcode = OPCODE.search(rest, end)
    close = _closing(rest, opcode.end() - 1)
    arguments = rest[opcode.end() : close]
    attributes = rest[close + 1 :]
    if opcode[1] in ("constant", "parameter"):
        attributes = arguments + ")" + attributes
    shapes = tuple(_array(*match.groups()) for match in ARRAY.finditer(rest[: end + 1]))
    operands = tuple(re.findall(r"%([\w.-]+)", arguments))
    return Instruction(name, opcode[1], shapes, operands, attributes, bool(root))


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at
    raise ValueError(f"{text[:60]}: expected a closing bracket")


def _array(kind, dims, layout) -> Array:
    dims = tuple(int(n) for n in dims.split(",") if n)
    size = math.prod(dims) * WIDTHS.get(kind, 1)
    return Array(dims, size, "S(" not in (layout or "") or "S(0)" in layout)


def _dot_flops(instruction, scope, key, dims) -> int:
    """2 x output x contracted."""
    found = instruction.attribute(key + dims)
    if found is None:
        return 0
    contracted = [int(n) for n in re.findall(r"\d+", found)]
    left = scope[instruction.operands[0]].arrays[0].dims
    return 2 * math.prod(instruction.arrays[0].dims) * math.prod(left[n] for n in contracted)


def _convolution_flops(instruction, scope) -> int:
    """2 x batch x output features x input features of the kernel x pairs of places that meet.

    A TPU's compiler writes matrix products as convolutions, batched ones with a dilated window.
    """
    left, right = (scope[name].arrays[0].dims for name in instruction.operands[:2])
    lhs, rhs, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes).groups()
    groups = int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    spatial = [label for label in lhs if label.isdigit()]
    window = dict(
        field.split("=") for field in (instruction.attribute(r"window=\{([^}]*)\}") or "").split()
    )
    pairs = 1
    for k, label in enumerate(spatial):
        sizes = [dims[labels.index(label)] for dims, labels in ((left, lhs), (right, rhs))]
        place = instruction.arrays[0].dims[out.index(label)]

        def of(name, default, k=k):
            return window[name].split("x")[k] if name in window else default

        low = int(of("pad", "0_0").split("_")[0])
        steps = [int(of(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate")]
        pairs *= _meeting(*sizes, place, low, *steps)
    features = instruction.arrays[0].dims[out.index("f")] * right[rhs.index("i")]
    return 2 * left[lhs.index("b")] // groups * features * pairs


@functools.cache
def _meeting(size, kernel, places, low, stride, dilate, kernel_dilate) -> int:
    """Pairs (place of the output, place of the kernel) that meet an input and not padding."""
    count, last = 0, (size - 1) * dilate
    for k in range(kernel):
        first = k * kernel_dilate - low
        if dilate == 1:  # those with 0 <= first + o stride <= last
            least, most = max(0, math.ceil(-first / stride)), (last - first) // stride
            count += max(0, min(most, places - 1) - least + 1)
        else:
            at = [first + o * stride for o in range(places)]
            count += sum(0 <= a <= last and a % dilate == 0 for a in at)
    return count
