"""Owns `Reading`: a read of a pipe or terminal that stays armed; `Receiving` with the operation for files.

What differs from a socket's receive: the kernel takes no limit of bytes, so a full pipe can empty the group before
anybody looks; there is no private memory to fall back to (such groups are refused); and the end of a pipe ends it as a
stream's does.
"""

from aiouring._multishot import Receiving
from aiouring._uring import lib

_prepare_multishot = lib.au_prepare_multishot
_READ_MULTISHOT = lib.AU_OP_READ_MULTISHOT


class Reading(Receiving):
    """The reading half of one pipe, terminal or the like."""

    __slots__ = ()

    def _operate(self, how: int) -> None:
        # Not by `how`: to wait for data before a buffer is looked for is what such a read does, and no flag of it.
        self._driver.start(self, _prepare_multishot, _READ_MULTISHOT, self.fd, self._raw_group, 0, self._how)
