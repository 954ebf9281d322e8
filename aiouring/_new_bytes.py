"""Owns `new_bytes`: bytes objects for the kernel to fill, without writing zeros to them first.

`bytes(size)` fills what it makes with zeros, which takes a fifth of the time in which the kernel copies as much from
the page cache.  The built-in `open()` makes its own by PyBytes_FromStringAndSize(NULL, size), and so do we, by ctypes:
the function is of the stable ABI, and called with the GIL held.  What such an object holds is whatever was in that
memory before, so the rule is: it is handed out only after `size` bytes have been written to it, or else what was
written is copied from it, and it is dropped.
"""

import ctypes

# Below so many bytes the zeros take less time than the call through ctypes.
_CALLED_FROM = 32 * 1024

_prototype = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)
_from_string_and_size = _prototype(("PyBytes_FromStringAndSize", ctypes.pythonapi))


def new_bytes(size: int) -> bytes:
    """A bytes object of `size` bytes that is nobody else's, to be filled before anybody sees it.

    Raises:
        MemoryError, OverflowError: there is no room for so many.
        ValueError: a negative size.
    """
    if size < _CALLED_FROM:
        return bytes(size)
    data: bytes = _from_string_and_size(None, size)
    return data
