"""Owns what file systems do differently: which of them would hold up the event loop.

A read or write that the kernel can do at once is done while it is submitted, in the loop's thread; one that has to wait
for a disk is not waited for.  FUSE waits for its server there (measured: as long as the server takes, KERNEL.md E10).
Its files are therefore read and written by workers of the kernel (IOSQE_ASYNC), which costs 60 us a request.

What cannot be helped here: where a FUSE server with direct_io answers a read with fewer bytes than were asked for, and
not at the end of the file, Linux 6.18 goes on by itself at the same place, and says that all were read.  Measured with
a server that answers 124 of 5000 bytes: pread() returns 124, IORING_OP_READ 5000 of which those from 124 on are wrong,
within the submission and in the background.  Such servers are few; through the page cache all is well.
"""

import os

_known: dict[int, bool] = {}  # by device


def waits_within_submission(device: int) -> bool:
    """Whether the file system on a device (`st_dev`) is one that requests wait for while they are submitted."""
    known = _known.get(device)
    if known is None:
        known = _known[device] = _kind(device).partition(".")[0] in ("fuse", "fuseblk", "virtiofs")
    return known


def _kind(device: int) -> str:
    """The file system's type, as /proc/self/mountinfo has it; empty if it does not say."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                head, _, tail = line.partition(" - ")
                if head.split()[2] == number:
                    return tail.split()[0]
    except OSError:
        pass
    return ""


def forget() -> None:
    """Look again the next time: a device may have another file system by now."""
    _known.clear()
