"""Runs a pickle without Python's unpickler: plain containers, and names that we know.

Pickle is a small stack language, and Python's own machine for it calls whatever the file names. This
one knows the opcodes that build numbers, text and containers; a name in the file becomes a `Known`
entry of a table that the caller passes in, or the file is refused. Nothing is imported, no method
that a file chooses is called, and opcodes that exist to make arbitrary objects (INST, OBJ, NEWOBJ,
the extension registry, out-of-band buffers) are refused. Opcodes are decoded by `pickletools`.

Memory: one stack entry or container item per opcode and text no longer than the file itself, except for
what calls copy from their arguments. A memo lets one long argument serve any number of calls, so all calls
together may copy MAX_COPIED bytes.
"""

import abc
import pickletools
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from jdepth.weights.faults import Fault, shown

MAX_OPCODES = 5_000_000  # a ViT-g head with two optimizer moments has about 10,000
MAX_COPIED = 128 * 2**20  # bytes; released files copy some kilobytes
ITEM_BYTES = 128  # of one item of a list that becomes a set or an OrderedDict


@dataclass(frozen=True, eq=False)
class Known:
    """A name that a pickle may use. `build(args)` makes its object; None: only ever an argument."""

    name: str
    build: Callable[[tuple], object] | None = None


class Stateful(abc.ABC):
    """Base of our own objects that a pickle may give a state after making them (BUILD)."""

    @abc.abstractmethod
    def set_state(self, state: object) -> None:
        """Take the state, or refuse it."""


_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_PLAIN = (type(None), bool, int, float, str, bytes)


def run(
    stream: BinaryIO,
    known: Mapping[str, Known],
    persistent: Callable[[object], object] | None = None,
) -> object:
    """Execute one pickle from `stream`, leaving it just behind, and return what it built.

    `known`: "module.name" -> entry. `persistent` turns a persistent id into an object.
    Raises Fault for what is refused and the standard library's errors for damaged bytes.
    """
    return _Machine(known, persistent).run(stream)


class _Machine:
    def __init__(self, known: Mapping[str, Known], persistent: Callable[[object], object] | None):
        self.known = known
        self.persistent = persistent
        self.stack: list = []
        self.below: list[list] = []  # stacks under each open MARK
        self.memo: dict[int, object] = {}
        self.copied = 0  # bytes

    def run(self, stream: BinaryIO) -> object:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_OPCODES:
                raise Fault(f"its pickle has more than {MAX_OPCODES} operations: not a weights file")
            if opcode.name in _VALUES:
                self.stack.append(argument)
                continue
            operation = _OPERATIONS.get(opcode.name)
            if operation is None:
                raise Fault(f"its pickle uses {opcode.name}, which no weights file needs: refused, nothing was run")
            operation(self, argument)
        # genops ends at STOP, or raises.
        result = self.stack.pop()
        if self.stack or self.below:
            raise Fault("its pickle leaves values behind: damaged")
        return result

    def push(self, value: object) -> None:
        self.stack.append(value)

    def items(self) -> list:
        """The values since the last MARK."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def top(self, *kinds: type):
        """The value on top, left there; its exact type must be one of `kinds`."""
        if type(self.stack[-1]) not in kinds:
            raise Fault(f"its pickle puts items into a {type(self.stack[-1]).__name__}: damaged")
        return self.stack[-1]

    def look_up(self, module: str, name: str) -> None:
        entry = self.known.get(f"{module}.{name}")
        if entry is None:
            raise Fault(f"refers to {shown(f'{module}.{name}')}, which no weights file needs: refused, nothing was run")
        self.stack.append(entry)

    def op_nothing(self, _) -> None:
        pass

    def op_pop(self, _) -> None:
        self.stack.pop() if self.stack else self.items()

    def op_mark(self, _) -> None:
        self.below.append(self.stack)
        self.stack = []

    # Memo

    def op_put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def op_memoize(self, _) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    # Containers

    def op_append(self, _) -> None:
        value = self.stack.pop()
        self.top(list).append(value)

    def op_appends(self, _) -> None:
        values = self.items()
        self.top(list).extend(values)

    def op_setitem(self, _) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.top(dict, OrderedDict)[checked_key(key)] = value

    def op_setitems(self, _) -> None:
        values = self.items()
        self.top(dict, OrderedDict).update(_pairs(values))

    def op_additems(self, _) -> None:
        values = self.items()
        self.top(set).update(checked_key(value) for value in values)

    def push_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise Fault("its pickle takes more values than it has: damaged")
        values = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(values)

    # Names and objects

    def count_copies(self, arguments: object) -> None:
        """Add what a call, or a state, can copy; only text, bytes and lists can be long."""
        for value in arguments if type(arguments) is tuple else ():
            if type(value) is list:
                self.copied += ITEM_BYTES * len(value)
            elif type(value) in (str, bytes, bytearray):
                self.copied += sys.getsizeof(value)
        if self.copied > MAX_COPIED:
            raise Fault(f"its pickle has calls that copy more than {MAX_COPIED} bytes: not a weights file")

    def op_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.look_up(module, name)

    def op_stack_global(self, _) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise Fault("its pickle names an object by something other than text: refused, nothing was run")
        self.look_up(module, name)

    def op_reduce(self, _) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Known) or function.build is None or type(arguments) is not tuple:
            name = function.name if isinstance(function, Known) else f"a {type(function).__name__}"
            raise Fault(f"its pickle calls {name}, which cannot be called: refused, nothing was run")
        self.count_copies(arguments)
        self.stack.append(function.build(arguments))

    def op_build(self, _) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if isinstance(made, Stateful):
            self.count_copies(state)
            made.set_state(state)
        elif type(made) is not OrderedDict or type(state) is not dict:
            raise Fault(f"its pickle sets the state of a {type(made).__name__}: refused, nothing was run")
        # An OrderedDict's state is PyTorch's `_metadata`, layer versions: not needed.

    def op_persistent(self, _) -> None:
        if self.persistent is None:
            raise Fault("its pickle refers to a storage where there is none: damaged")
        self.stack.append(self.persistent(self.stack.pop()))


def checked_key(key: object) -> object:
    """`key`, if it is plain or a tuple of plain values: hashing deep nesting can crash Python."""
    if type(key) in _PLAIN or (type(key) is tuple and all(type(part) in _PLAIN for part in key)):
        return key
    raise Fault(f"its pickle has a {type(key).__name__} as a key: refused")


def _pairs(values: list) -> dict:
    if len(values) % 2:
        raise Fault("its pickle has a key without a value: damaged")
    return {checked_key(key): value for key, value in zip(values[::2], values[1::2], strict=True)}


_OPERATIONS: dict[str, Callable[[_Machine, object], object]] = {
    "PROTO": _Machine.op_nothing,
    "FRAME": _Machine.op_nothing,
    "STOP": _Machine.op_nothing,
    "MARK": _Machine.op_mark,
    "POP": _Machine.op_pop,
    "POP_MARK": lambda machine, _: machine.items(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.items()),
    "APPEND": _Machine.op_append,
    "APPENDS": _Machine.op_appends,
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": lambda machine, _: machine.push(_pairs(machine.items())),
    "SETITEM": _Machine.op_setitem,
    "SETITEMS": _Machine.op_setitems,
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "ADDITEMS": _Machine.op_additems,
    "FROZENSET": lambda machine, _: machine.push(frozenset(map(checked_key, machine.items()))),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.items())),
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    "PUT": _Machine.op_put,
    "BINPUT": _Machine.op_put,
    "LONG_BINPUT": _Machine.op_put,
    "MEMOIZE": _Machine.op_memoize,
    "GET": _Machine.op_get,
    "BINGET": _Machine.op_get,
    "LONG_BINGET": _Machine.op_get,
    "GLOBAL": _Machine.op_global,
    "STACK_GLOBAL": _Machine.op_stack_global,
    "REDUCE": _Machine.op_reduce,
    "BUILD": _Machine.op_build,
    "BINPERSID": _Machine.op_persistent,
}
