"""What a compiled program moves between devices, read from its optimised HLO."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8} | dict.fromkeys(("token", "opaque"), 0)  # others carry theirs in the name: f32, bf16, s4

_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"\s([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=\{?%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)')
_CONSTANT = re.compile(r"s32\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_FUSIONS = ("fusion", "reduce", "reduce-window", "scatter", "select-and-scatter", "sort", "map")
_SLICES, _UPDATE = ("dynamic-slice", "slice", "gather"), "dynamic-update-slice"
_FREE = (  # no bytes of their own
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
)  # fmt: skip


class Array(NamedTuple):
    """The type of an array: "f32" and its shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def size(self) -> int:
        """Bytes."""
        digits = re.search(r"\d+", self.dtype)
        bits = BITS[self.dtype] if self.dtype in BITS else int(digits[0]) if digits else 0
        return math.ceil(math.prod(self.shape) * bits / 8)


class Collective(NamedTuple):
    """A transfer between devices, as often as the program runs it."""

    kind: str
    arrays: tuple[Array, ...]  # the larger side: what was gathered, what will be scattered
    times: int  # in loops, whose trips the compiler knows
    source: str  # op_name: the line of the model it comes from

    @property
    def size(self) -> int:
        """Bytes of one device's arrays, over all times."""
        return self.times * _bytes(self.arrays)


class _Instruction(NamedTuple):
    computation: str
    name: str
    result: tuple[Array, ...]
    operation: str
    operands: list[str]
    line: str


def collectives(text: str) -> list[Collective]:
    """All of a module's, asynchronous pairs (-start, -done) once.

    TPU's compiler writes one that overlaps with computation as several fusions of one channel: also once. It
    writes a reduce-scatter as an all-reduce within a computation called all-reduce-scatter.
    """
    instructions = list(_instructions(text))
    by_name = {i.name: i for i in instructions}
    times = _times(instructions)
    found, channels = [], set()
    for each in instructions:
        kind = each.operation.removesuffix("-done")
        if kind not in KINDS:  # a -start says what its -done says, and more: its operand
            continue
        if channel := _CHANNEL.search(each.line):
            if (kind, channel[1]) in channels and "fus" in each.computation:
                continue
            channels.add((kind, channel[1]))
        if each.computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        begun = each
        if each.operation.endswith("-done"):
            begun = next((by_name[o] for o in each.operands if o in by_name), each)
        given = tuple(a for o in begun.operands if o in by_name for a in by_name[o].result)
        arrays = max(each.result, given, key=_bytes)
        source = re.search(r'op_name="([^"]*)"', begun.line)
        found.append(Collective(kind, arrays, times.get(each.computation, 1), source[1] if source else ""))
    return found


def repeats(text: str) -> float:
    """How many times the bytes of a program are those of the same with every loop's body run once.

    The compiler's own count of bytes takes a loop's body once.
    """
    instructions = list(_instructions(text))
    times, by_computation = _times(instructions), defaultdict(list)
    for each in instructions:
        by_computation[each.computation].append(each)
    inside = {name for i in instructions if i.operation in _FUSIONS for name in _CALLED.findall(i.line)}
    once = whole = 0
    for name, body in by_computation.items():
        if name in inside:
            continue
        by_name = {i.name: i for i in body}
        for each in body:
            if each.operation not in _FREE and not each.operation.endswith(("-start", "-done")):
                size = _size(each, by_name, by_computation)
                once += size
                whole += size * times.get(name, 1)
    return whole / once if once else 1.0


def _size(each: _Instruction, by_name: dict[str, _Instruction], bodies: dict[str, list[_Instruction]]) -> int:
    """Bytes that an instruction reads and writes; of an array that it only slices or updates, that part."""
    sizes, written = [_bytes(by_name[o].result) for o in each.operands if o in by_name], _bytes(each.result)
    if each.operation == "fusion":
        body = [i for name in _CALLED.findall(each.line) for i in bodies.get(name, ())]
        parts, root = _parts(body)
        sizes = [parts.get(i, size) for i, size in enumerate(sizes)]
        written = written if root is None else root
    elif each.operation in _SLICES:
        sizes = [written]
    elif each.operation == _UPDATE:
        sizes, written = sizes[1:], sizes[1]
    return sum(sizes) + written


def _parts(body: list[_Instruction]) -> tuple[dict[int, int], int | None]:
    """What a fused computation reads and writes in part.

    Returns:
      ({number of a parameter that it only slices or updates in place: bytes read}, bytes of the update where
      its root is one, else None).
    """
    by_name = {i.name: i for i in body}
    named = {i.name: [o for o in i.operands if o in by_name] for i in body}

    found: dict[int, int] = {}
    for parameter in (i for i in body if i.operation == "parameter"):
        users = [i for i in body if parameter.name in named[i.name]]
        first = users and all(named[i.name][0] == parameter.name for i in users)
        if first and all(i.operation in _SLICES for i in users):
            found[int(parameter.operands[0])] = sum(_bytes(i.result) for i in users)
        elif first and all(i.operation == _UPDATE for i in users):
            found[int(parameter.operands[0])] = 0
    root = next((i for i in body if "ROOT" in i.line), None)
    if root and root.operation == _UPDATE:
        return found, _bytes(by_name[named[root.name][1]].result)
    return found, None


def bytes_by_kind(found: list[Collective]) -> dict[str, int]:
    """{kind: bytes of one device} of all kinds."""
    return {kind: sum(c.size for c in found if c.kind == kind) for kind in KINDS}


def image_sized(
    found: list[Collective], image: tuple[int, ...], parameters: list[tuple[int, ...]]
) -> list[Collective]:
    """Those that carry images or feature maps.

    That is an array at least as large as one `image (h, w, c)` that has four axes or more, or three with h
    and w among them, or an axis of a whole flattened image; but not the shape of a parameter. Runs from
    memory send images four bytes to a word of 32 bits.
    """
    own = {tuple(sorted(shape)) for shape in parameters}
    pixels = math.prod(image)
    words = -(-pixels // 4)

    def carries(array: Array) -> bool:
        if array.dtype == "u32" and words in array.shape and len(array.shape) > 1:
            return True
        rank, neighbours = len(array.shape), itertools.pairwise(array.shape)
        like_images = rank >= 4 or pixels in array.shape or (rank == 3 and image[:2] in neighbours)
        return math.prod(array.shape) >= pixels and like_images and tuple(sorted(array.shape)) not in own

    return [c for c in found if any(map(carries, c.arrays))]


def _bytes(arrays: Iterable[Array]) -> int:
    return sum(array.size for array in arrays)


def _instructions(text: str) -> Iterator[_Instruction]:
    computation = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif match := _INSTRUCTION.match(line):
            name, rest = match.groups()
            if operation := _OPERATION.search(rest):
                begin = operation.end() - 1
                result = _arrays(rest[: operation.start()])
                # Names, and with some printers each one's type: whoever looks them up finds no such name.
                operands = re.findall(r"[\w.\-]+", rest[begin : _closing(rest, begin)])
                yield _Instruction(computation, name, result, operation[1], operands, line)


def _closing(text: str, begin: int) -> int:
    depth = 0
    for i in range(begin, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    return len(text)


def _arrays(text: str) -> tuple[Array, ...]:
    text = re.sub(r"/\*.*?\*/", "", text)
    found = _ARRAY.findall(text)
    return tuple(Array(dtype, tuple(int(n) for n in shape.split(",") if n)) for dtype, shape in found)


def _limits(instructions: list[_Instruction]) -> dict[str, int]:
    """{condition of a loop: trips} where it is "counter < constant", which is all that TPU's compiler says.

    Loops of JAX's scan, map and fori_loop from 0 count their trips so.
    """
    constants = {i.name: int(n[1]) for i in instructions if (n := _CONSTANT.search(i.line))}
    found = {}
    for each in instructions:
        if each.operation == "compare" and "direction=LT" in each.line and "ROOT" in each.line:
            of_both = [constants[name] for name in each.operands if name in constants]
            if len(of_both) == 1:
                found[each.computation] = of_both[0]
    return found


def _times(instructions: list[_Instruction]) -> dict[str, int]:
    """How often each computation runs: once, but for the bodies of loops, and what they call."""
    callers: dict[str, list[tuple[str, int]]] = {}
    limits = _limits(instructions)
    for each in instructions:
        called = _CALLED.findall(each.line)
        for branches in _BRANCHES.findall(each.line):
            called += re.findall(r"%?([\w.\-]+)", branches)
        trips = 1
        if each.operation == "while":
            told = _TRIPS.search(each.line)
            trips = int(told[1]) if told else max((limits.get(name, 1) for name in called), default=1)
        for name in called:
            callers.setdefault(name, []).append((each.computation, trips))
    known: dict[str, int] = {}

    def times(name: str) -> int:
        if name not in known:
            known[name] = sum(trips * times(caller) for caller, trips in callers.get(name, [])) or 1
        return known[name]

    return {name: times(name) for name in {each.computation for each in instructions}}
