"""Parser of the collectives in a compiled program's text (optimized HLO), and of its opcodes.

`plan` and the communication tests read every collective that one run of the program executes:
those in loops are multiplied by the loop's trip count. An asynchronous one counts once: its two
halves, or the chain of fusions in which a TPU computes other things meanwhile. This is no general
HLO parser: it skips every line that it does not know.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
SHAPE = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,<=]*)\]")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
CALLED = re.compile(r"\b(calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\s*\{"n":\s*"(\d+)"')
SOURCE = re.compile(r'op_name="([^"]*)"')
CHAIN = re.compile(r'chain_id="([^"]*)"')


class Shape(NamedTuple):
    """The type of an array: dtype "f32" and dims (3, 4) for f32[3,4]."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> float:
        """Bytes of the array."""
        bits = re.search(r"\d+", self.dtype)
        # "pred" has no number and takes a byte; f8e4m3fn and the like name their bits first
        return math.prod(self.dims) * (int(bits.group()) / 8 if bits else 1)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      type: text of the result's type.
      arguments: text between the parentheses after the opcode.
      attributes: text after them.
    """

    name: str
    opcode: str
    type: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Names of the instructions that make the arguments."""
        return re.findall(r"%([\w.\-]+)", self.arguments)


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of the program.

    Attributes:
      kind: one of `KINDS`.
      name: of its instruction.
      operands, results: types on one device; a combined collective has several.
      times: how often one run of the program executes it; 0 = inside a loop of unknown length.
      source: name that JAX gave the operation which the compiler turned into this collective.
      chain: on TPUs, the number of a collective that several fusions share; "" = one alone.
    """

    kind: str
    name: str
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]
    times: int
    source: str = ""
    chain: str = ""

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Types of the whole arrays: the results of an all-gather, a reduce-scatter's operands."""
        sizes = [sum(s.bytes for s in shapes) for shapes in (self.operands, self.results)]
        return self.operands if sizes[0] >= sizes[1] else self.results

    @property
    def bytes(self) -> float:
        """Bytes of the whole arrays, summed over all executions."""
        return self.times * sum(s.bytes for s in self.shapes)


def collectives(text: str) -> list[Collective]:
    """Return every collective of a program in optimized HLO text.

    Raises:
      ValueError: the text has no ENTRY computation.
    """
    computations, entry = parse(text)
    return list(_walk(computations, entry, 1, ""))


def opcodes(text: str) -> Counter[str]:
    """Return how many instructions of each opcode a program has, those inside fusions too.

    Raises:
      ValueError: the text has no ENTRY computation.
    """
    return Counter(i.opcode for body in parse(text)[0].values() for i in body)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Return the instructions of each computation by its name, and the name of the entry.

    Raises:
      ValueError: the text has no ENTRY computation.
    """
    computations: dict[str, list[Instruction]] = {}
    current, entry = None, None
    for line in text.splitlines():
        if not line.startswith((" ", "}")) and (head := COMPUTATION.match(line)):
            current = computations.setdefault(head.group(2), [])
            entry = head.group(2) if head.group(1) else entry
        elif current is not None and (match := INSTRUCTION.match(line)):
            current += _instruction(*match.groups())
    if entry is None:
        raise ValueError("no ENTRY computation: this is no HLO module")
    return computations, entry


def _instruction(name: str, rest: str) -> list[Instruction]:
    """Return the line's instruction, or an empty list where the line holds none."""
    # The type may be a tuple and hold layouts with parentheses of their own: {1,0:T(8,128)}.
    end = _balanced(rest) if rest.startswith("(") else rest.find(" ")
    opcode, paren, tail = rest[end:].strip().partition("(")
    if not paren or not re.fullmatch(r"[\w\-]+", opcode):
        return []
    close = _balanced("(" + tail) - 1
    return [Instruction(name, opcode, rest[:end], tail[: close - 1], tail[close:])]


def _balanced(text: str) -> int:
    """Return the index after the parenthesis that closes the first one."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return i + 1
    return len(text)


def shapes(text: str) -> tuple[Shape, ...]:
    """Return all array types in the text of a type, in order."""
    return tuple(
        Shape(dtype, tuple(int(d.strip("<=")) for d in dims.split(",") if d))
        for dtype, dims in SHAPE.findall(text)
        if dtype != "token"
    )


def _walk(
    computations: dict[str, list[Instruction]], name: str, times: int, caller: str
) -> Iterator[Collective]:
    """Yield the collectives of computation `name`, which `caller` runs `times` times."""
    body, chains = computations.get(name, []), set()
    types = {i.name: i.type for i in body}
    for i in body:
        kind = i.opcode.removesuffix("-start")
        if kind in KINDS:
            yield _collective(i, kind, types, times, caller)
        elif i.opcode == "while":
            trips = trip_count(i, computations)
            for _, callee in CALLED.findall(i.attributes):
                yield from _walk(computations, callee, times * trips, i.name)
        elif not i.opcode.endswith(("-done", "-update")):
            # async-start, fusion, call, conditional (each branch once)
            callees = [callee for _, callee in CALLED.findall(i.attributes)]
            for group in BRANCHES.findall(i.attributes):
                callees += re.findall(r"[\w.\-]+", group)
            for callee in callees:
                for found in _walk(computations, callee, times, i.name):
                    if not found.chain or (found.kind, found.chain) not in chains:
                        yield found
                    chains.add((found.kind, found.chain))


def _collective(
    i: Instruction, kind: str, types: dict[str, str], times: int, caller: str
) -> Collective:
    """Return the collective of instruction `i`; `types` holds those of the same computation."""
    operands = tuple(s for o in i.operands for s in shapes(types.get(o, "")))
    results = shapes(i.type)
    if i.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        # The type is ((operands), (results), contexts); contexts are scalars of type u32, so the
        # results are the second half of the rest.
        results = tuple(s for s in results if s.dims or s.dtype != "u32")
        results = results[len(results) // 2 :]
    if kind == "all-reduce" and caller.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # how TPUs write one: a fusion of all-reduce and dynamic-slice
    source, chain = (
        found.group(1) if (found := pattern.search(i.attributes)) else ""
        for pattern in (SOURCE, CHAIN)
    )
    return Collective(kind, i.name, operands, results, times, source, chain)


def trip_count(loop: Instruction, computations: dict[str, list[Instruction]]) -> int:
    """Return the iterations of a loop: the compiler's note, else its bound, else 0 (unknown)."""
    if match := TRIPS.search(loop.attributes):
        return int(match.group(1))
    condition = dict(CALLED.findall(loop.attributes)).get("condition", "")
    bounds = [i.arguments for i in computations.get(condition, []) if i.opcode == "constant"]
    return int(bounds[0]) if len(bounds) == 1 and bounds[0].isdigit() else 0
