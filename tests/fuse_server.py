"""A file system with one file, `/file`, of SIZE bytes, for tests: python fuse_server.py DIRECTORY MODE

It speaks the kernel's protocol itself.  MODE says what becomes of reads and writes: "hang" never answers, "bad" has a
region that cannot be read, and cannot be written; "lost" takes writes, and says EIO when it is to flush them, and when
a descriptor is closed; "shut" never answers who opens the file.  It serves until it is unmounted or killed.
"""

import ctypes
import errno
import os
import struct
import sys

SIZE = 1 << 20
BAD = 8192
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _RELEASE, _FSYNC = 1, 2, 3, 4, 14, 15, 16, 18, 20
_FLUSH, _INIT, _INTERRUPT, _BATCH_FORGET = 25, 26, 36, 42


def content(offset: int, size: int) -> bytes:
    """The file's bytes."""
    return bytes((offset + at) % 251 for at in range(max(0, min(size, SIZE - offset))))


def attributes(node: int) -> bytes:
    """A struct fuse_attr."""
    kind, links = (0o040755, 2) if node == 1 else (0o100644, 1)
    return struct.pack("<6Q10I", node, SIZE, 8, 0, 0, 0, 0, 0, 0, kind, links, 0, 0, 0, 4096, 0)


def read(mode: str, offset: int, size: int) -> bytes | int | None:
    """What a read gets: bytes, an errno, or nothing."""
    if mode == "hang":
        return None
    if mode == "bad" and offset + size > BAD:
        return content(offset, BAD - offset) if offset < BAD else errno.EIO
    return content(offset, size)


def answer(mode: str, opcode: int, node: int, body: bytes) -> bytes | int | None:
    """What a request gets: the body of a reply, an errno, or nothing."""
    if opcode == _INIT:
        return struct.pack("<IIIIHHIIHH8I", 7, 31, 0, 0, 16, 16, 1 << 17, 1, 32, 0, *[0] * 8)
    if opcode == _LOOKUP:
        if body.rstrip(b"\0") == b"file":
            return struct.pack("<QQQQII", 2, 0, 1000, 1000, 0, 0) + attributes(2)
        return errno.ENOENT
    if opcode in (_GETATTR, _SETATTR):
        return struct.pack("<QII", 1000, 0, 0) + attributes(node)
    if opcode == _OPEN:
        return (
            None if mode == "shut" else struct.pack("<QII", 7, 1, 0)
        )  # FOPEN_DIRECT_IO: each read and write comes here
    if opcode in (_READ, _WRITE):
        _, offset, size = struct.unpack_from("<QQI", body)
        if opcode == _READ:
            return read(mode, offset, size)
        if mode == "lost":
            return struct.pack("<II", size, 0)
        return None if mode == "hang" else errno.EIO
    if mode == "lost" and opcode in (_FLUSH, _FSYNC):
        return errno.EIO
    if opcode in (_FLUSH, _RELEASE, _FSYNC):
        return None if mode == "hang" and opcode == _FLUSH else b""
    return None if opcode in (_FORGET, _BATCH_FORGET, _INTERRUPT) else errno.ENOSYS


def main(directory: str, mode: str) -> None:
    """Mount, say so, and serve."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"test", directory.encode(), b"fuse.test", 0, options):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    while True:
        try:
            message = os.read(fd, 1 << 21)
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return
            continue
        length, opcode, unique, node = struct.unpack_from("<IIQQ", message)
        reply = answer(mode, opcode, node, message[40:length])
        if reply is not None:
            body, error_number = (b"", reply) if isinstance(reply, int) else (reply, 0)
            try:
                os.write(fd, struct.pack("<IiQ", 16 + len(body), -error_number, unique) + body)
            except OSError:
                continue  # nobody waits for it any more


if __name__ == "__main__":
    main(*sys.argv[1:])
