"""Owns the loading of the types written in C: a second module, `aiouring._rows`, in the shared object of the core.

What they are is said in `_native/objects.c`.  Loaded like this, and not from a file of their own, they and the core
(`_uring`) are one piece of code, with one state.
"""

import sys
from collections.abc import Coroutine
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType

from aiouring import _uring


def _load() -> ModuleType:
    loader = ExtensionFileLoader("aiouring._rows", _uring.__file__)
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[loader.name] = module  # where pickle and the like look for a type by its name
    return module


_rows = _load()

LeaseRow = _rows.LeaseRow
RequestRow = _rows.RequestRow
ReceivingRow = _rows.ReceivingRow
TurnsRow = _rows.TurnsRow
SendingRow = _rows.SendingRow
FileRow = _rows.FileRow
OpenRow = _rows.OpenRow
new_bytes = _rows.new_bytes

# What they return to be awaited: `asyncio` makes tasks of these, as it does of coroutines.
Coroutine.register(_rows.Next)
Coroutine.register(_rows.Done)
Coroutine.register(_rows.Reading)
