"""Owns what the tests of registered files ask the kernel itself: which files are in a ring's table."""

import os
from pathlib import Path

import aiouring


def kernel_slots(ring: aiouring.Ring | aiouring.AsyncRing) -> dict[int, str]:
    """The slots that hold a file, and the file's name, by the ring's fdinfo."""
    fd = ring.fd if isinstance(ring, aiouring.Ring) else ring._ring.fd
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("UserFiles:"))
    found = {}
    for line in lines[start + 1 :]:
        if not line.startswith(" "):
            break
        index, _, name = line.partition(":")
        found[int(index)] = name.strip()
    return found


def agrees(ring: aiouring.Ring | aiouring.AsyncRing, files: aiouring.RegisteredFiles) -> dict[int, str]:
    """What the kernel has; asserts that the table knows the same slots to be filled."""
    found = kernel_slots(ring)
    assert sorted(found) == [descriptor.index for descriptor in files]
    assert files.statistics().in_use == len(found)
    return found


def opened(path: Path, content: bytes) -> int:
    """A descriptor of a new file with this content, open for both ways."""
    path.write_bytes(content)
    return os.open(path, os.O_RDWR)
