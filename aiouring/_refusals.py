"""Owns `refusal()`: the error for a request that the C core would not fill, with the numbers it was asked for."""

from collections.abc import Callable
from typing import Any

from aiouring._errors import failure
from aiouring._uring import lib

# The numbers a refused request is explained with: the arguments of each au_prepare function, in order.
_ARGUMENTS = {
    lib.au_prepare: ("opcode", "fd", "offset", "address", "length"),
    lib.au_prepare_memory: ("opcode", "fd", "memory", "capacity", "start", "length", "offset"),
    lib.au_prepare_fixed: ("opcode", "fd", "table", "index", "start", "length", "offset"),
    lib.au_prepare_fixed_vector: ("opcode", "fd", "table", "index"),
    lib.au_prepare_select: ("opcode", "fd", "group", "length", "offset"),
    lib.au_prepare_send_fixed: ("opcode", "fd", "table", "index", "start", "length"),
    lib.au_prepare_waitid: ("opcode", "fd", "idtype"),
    lib.au_prepare_futex: ("opcode", "memory", "capacity", "start"),
    lib.au_prepare_futexes: ("opcode",),
    lib.au_prepare_vector: ("opcode", "fd", "message", "offset"),
    lib.au_prepare_message: ("opcode", "fd", "message", "table", "index"),
    lib.au_prepare_receive_message: ("opcode", "fd", "message"),
    lib.au_prepare_select_message: ("opcode", "fd", "group", "message"),
    lib.au_prepare_socket_command: ("opcode", "fd", "command", "level", "option"),
    lib.au_prepare_splice: ("opcode", "fd", "offset", "source", "source_offset", "length"),
    lib.au_prepare_slot: ("opcode", "fd", "offset", "length", "flags", "slot"),
    lib.au_prepare_path: ("opcode", "fd", "path", "second", "third", "length", "flags", "slot"),
    lib.au_prepare_array: ("opcode", "array", "count", "slot", "flags"),
}


def refusal(code: int, prepare: Callable[..., int], arguments: tuple[Any, ...]) -> Exception:
    """The exception for what `prepare` said of its arguments."""
    numbers = dict(zip(_ARGUMENTS[prepare], arguments, strict=False))
    if prepare in (lib.au_prepare_fixed, lib.au_prepare_send_fixed):
        numbers["capacity"] = lib.au_buffers_size(numbers["table"], numbers["index"])
        numbers["index"] &= lib.AU_SLOT_MASK
    elif prepare in (lib.au_prepare_select, lib.au_prepare_select_message):
        numbers["index"] = numbers["group"].group_id
    return failure(code, "", **numbers)
