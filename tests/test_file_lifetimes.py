"""Tests of open files under cancellation, threads, forks, signals and hung file systems: FAULTS.md's rows A, B, C, I.

Rows held elsewhere, for open files as well: A2 in `test_binary_reading` and `test_text_file`; A3 with G8, a file that
is closed while its file system hangs, in `test_file_system`; A14 in `test_raw_file` and `test_write_behind`; B3 and B4
in `test_raw_file`; B5 for reads of a pipe in `test_binary_reading`; H2 in `test_raw_file`; I4 in `test_file_object`.
"""

import asyncio
import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RingFactory, turns
from file_systems import Mounter, fuse_servers
from injected_faults import run_python
from test_binary_file import LOOPS

import aiouring
from aiouring._driver import GRAVEYARD
from aiouring._raw_file import PIECE

CONTENT = random.Random(41).randbytes(700_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of known bytes."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Mounter]:
    """Mounts the test's file system in a mode; returns its file and its server."""
    yield from fuse_servers(tmp_path)


# ---- cancelled -------------------------------------------------------------------------------------


def test_a10_no_linked_timeouts() -> None:
    """A timeout linked to a read can end it with its data lost; none is ever submitted."""
    package = Path(aiouring.__file__).parent
    users = [
        path.name
        for path in [*package.glob("*.py"), *package.glob("_native/*.c")]
        if "LINK_TIMEOUT" in path.read_text()
    ]
    assert sorted(users) == ["_abi.py", "_restrictions.py"]


@pytest.mark.parametrize("buffering", [-1, 0])
async def test_a4_a10_timeouts_lose_nothing(ring: aiouring.AsyncRing, buffering: int) -> None:
    """Reads of a pipe under timeouts that pass before, with and after the data: each byte is read once."""
    reader, writer = os.pipe()
    choose = random.Random(42)
    sent = b"".join(choose.randbytes(choose.randrange(1, 300)) for _ in range(300))

    async def send() -> None:
        async with aiouring.open(writer, "wb", 0, ring=ring) as sink:
            at = 0
            while at < len(sent):
                size = choose.randrange(1, 400)
                await sink.write(sent[at : at + size])
                at += size
                await asyncio.sleep(choose.choice([0, 0, 0.0005, 0.001]))

    found, timeouts = b"", 0
    async with aiouring.open(reader, "rb", buffering, ring=ring) as source, asyncio.TaskGroup() as group:
        sending = group.create_task(send())
        while True:
            try:
                async with asyncio.timeout(choose.choice([-1, 0, 0.0002, 0.0005, 0.001])):
                    part = await choose.choice([source.read1, source.read1, source.read])(choose.randrange(1, 500))
            except TimeoutError:
                timeouts += 1
                continue
            found += part
            if not part and sending.done():
                break
    assert found == sent
    assert timeouts


async def test_a5_as_asyncio_ends_what_waits(ring: aiouring.AsyncRing) -> None:
    """Timeouts, wait_for(), a TaskGroup whose sibling fails and shield() end a read as they end a sleep."""
    reader, writer = os.pipe()
    async with aiouring.open(reader, "rb", ring=ring) as source, aiouring.open(writer, "wb", 0, ring=ring) as sink:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(source.read(1), 0.001)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5), asyncio.timeout(0):
                await source.readline()
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(source.read(1))
                await turns()
                group.create_task(asyncio.wait_for(asyncio.sleep(1), 0))
        assert [type(error) for error in caught.value.exceptions] == [TimeoutError]
        assert reading.cancelled()
        inner = asyncio.ensure_future(source.read(4))
        outer = asyncio.ensure_future(_shielded(inner))
        await turns()
        outer.cancel()
        await asyncio.wait([outer])
        assert outer.cancelled()
        await sink.write(b"data")
        assert await inner == b"data"


async def _shielded(task: "asyncio.Future[bytes]") -> bytes:
    return await asyncio.shield(task)


@pytest.mark.parametrize("buffering", [-1, 0])
async def test_a6_cancelled_twice(ring: aiouring.AsyncRing, buffering: int) -> None:
    """A second cancel while the first is under way, and a read in `finally`, end, and lose nothing."""
    reader, writer = os.pipe()
    async with aiouring.open(reader, "rb", buffering, ring=ring) as source:
        rest: list[bytes] = []

        async def read() -> None:
            try:
                await source.read(4)
            finally:
                async with asyncio.timeout(1):
                    rest.append(await source.read(4))

        task = asyncio.create_task(read())
        await turns()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await turns()
        os.write(writer, b"datamore")
        await asyncio.wait([task], timeout=5)
        assert task.cancelled()
        os.close(writer)
        assert b"".join(rest) + await source.read() == b"datamore"
    assert ring.statistics().in_flight == 0


# ---- closed, dropped -------------------------------------------------------------------------------


@pytest.mark.leaves_things
@pytest.mark.parametrize("buffering", [-1, 0])
async def test_b2_the_ring_is_closed_while_a_file_hangs(new_ring: RingFactory, fuse: Mounter, buffering: int) -> None:
    """Closing is bounded; what the kernel may still fill is kept alive, and cannot be resized; the loop goes on."""
    path, server = fuse("hang")
    ring = await new_ring(cancel_timeout=0.05, close_timeout=0.1)
    file = await aiouring.open(path, "rb", buffering, ring=ring)
    memory = bytearray(2 * PIECE)
    reads = [asyncio.create_task(verb) for verb in (file.readinto(memory), file.read_at(4096, 0), file.read_at(5, 9))]
    await asyncio.sleep(0.02)
    buried, start = len(GRAVEYARD), time.perf_counter()
    with pytest.warns(ResourceWarning, match=r"3 request\(s\)"):
        await ring.aclose()
    assert time.perf_counter() - start < 2
    assert len(GRAVEYARD) == buried + 1
    for read in reads:
        with pytest.raises(aiouring.RingClosedError):
            await read
    with pytest.raises(BufferError):
        memory.extend(b"x")
    server.kill()  # or the close of the descriptor itself would wait for it, in this thread
    server.wait()
    await file.close()
    assert file.closed


async def test_b5_buffers_that_nobody_else_has(ring: aiouring.AsyncRing) -> None:
    """Memory that only a read or a write of a file has left lives until the kernel is done with it."""
    reader, writer = os.pipe()
    async with aiouring.open(reader, "rb", 0, ring=ring) as source, aiouring.open(writer, "wb", 0, ring=ring) as sink:
        reading = asyncio.create_task(source.readinto(bytearray(100_000)))
        await turns()
        gc.collect()
        writing = asyncio.create_task(sink.write(bytearray(CONTENT)))
        await turns()
        gc.collect()
        found = await reading
        while found < len(CONTENT):
            found += await source.readinto(bytearray(100_000))
        assert await writing == len(CONTENT)


# ---- threads, forks, signals -----------------------------------------------------------------------

USES: dict[str, Callable[[Any], Any]] = {
    "read": lambda file: file.read(5),
    "read much": lambda file: file.read(200_000),
    "readline": lambda file: file.readline(),
    "readinto": lambda file: file.readinto(bytearray(5)),
    "read_at": lambda file: file.read_at(5, 5),
    "write": lambda file: file.write(b"x"),
    "write much": lambda file: file.write(bytes(1 << 20)),
    "write_at": lambda file: file.write_at(b"x", 5),
    "seek": lambda file: file.seek(0),
    "flush": lambda file: file.flush(),
    "sync": lambda file: file.sync(),
    "truncate": lambda file: file.truncate(0),
    "close": lambda file: file.close(),
}


async def refused(file: Any, only_written: bool) -> list[str]:
    """Which uses of a file are not refused with WrongContextError, in this thread, loop or process."""
    wrong = []
    for name, use in USES.items():
        if only_written and name.startswith(("read", "seek", "truncate")):
            continue
        try:
            async with asyncio.timeout(5):
                await use(file)
        except aiouring.WrongContextError:
            continue
        except BaseException as error:
            wrong.append(f"{name}: {error!r}")
        else:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("mode", ["r+b", "wb"])
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
async def test_c1_another_thread(ring: aiouring.AsyncRing, path: Path, mode: Any, direct: bool) -> None:
    """In another thread, and so in another loop, everything is refused before it is begun; here the file goes on."""
    async with aiouring.open(path, mode, direct=direct, ring=ring) as file:
        await file.write(b"here")
        if "r" in mode:
            await file.seek(0)
            assert await file.read(4) == b"here"  # ... and more is here now
        assert await asyncio.to_thread(lambda: asyncio.run(refused(file, mode == "wb"))) == []
        assert not file.closed
        await file.write(b" and here")
        assert await file.tell() == 13
    rest = CONTENT[13:] if "r" in mode else b""
    assert path.read_bytes() == b"here and here" + rest
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_c1_another_thread_with_text(ring: aiouring.AsyncRing, path: Path) -> None:
    """Text is refused as bytes are, also what has been decoded already."""
    path.write_text("one\ntwo\nthree\n")

    async def use(file: aiouring.TextFile) -> None:
        for verb in (file.readline(), file.read(1), file.seek(0), file.tell(), file.close()):
            with pytest.raises(aiouring.WrongContextError):
                await verb

    async with aiouring.open(path, ring=ring) as file:
        assert await file.readline() == "one\n"
        await asyncio.to_thread(lambda: asyncio.run(use(file)))
        assert await file.readlines() == ["two\n", "three\n"]
    await asyncio.get_running_loop().shutdown_default_executor()


@pytest.mark.parametrize("factory", LOOPS, ids=["asyncio", "uvloop"])
def test_c1_another_loop(factory: Callable[[], asyncio.AbstractEventLoop], path: Path) -> None:
    """A loop of its own in the same thread, after the file's has ended, is told that the ring is closed."""

    async def use(file: aiouring.BinaryFile) -> None:
        for verb in (file.read(10), file.seek(0), file.write(bytes(1 << 20)), file.close()):
            with pytest.raises(aiouring.RingClosedError):
                await verb

    async def main() -> aiouring.BinaryFile:
        return await aiouring.open(path, "r+b")

    with asyncio.Runner(loop_factory=factory) as runner:
        file = runner.run(main())
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(use(file))
    with pytest.warns(ResourceWarning, match="never closed"):
        del file
        gc.collect()
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("factory", LOOPS, ids=["asyncio", "uvloop"])
def test_c1_another_loop_that_writes(factory: Callable[[], asyncio.AbstractEventLoop], path: Path) -> None:
    """It is refused before anything is taken over; what was taken over in the file's own loop is written in the end."""

    async def use(file: aiouring.BinaryFile) -> None:
        for size in (10, 1 << 20):
            with pytest.raises(aiouring.RingClosedError):
                await file.write(bytes(size))

    async def main() -> aiouring.BinaryFile:
        file = await aiouring.open(path, "wb")
        await file.write(b"taken over")
        return file

    with asyncio.Runner(loop_factory=factory) as runner:
        file = runner.run(main())
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(use(file))
    with pytest.warns(ResourceWarning, match="never closed"):
        del file
        gc.collect()
    assert path.read_bytes() == b"taken over"


@pytest.mark.parametrize("mode", ["w+b", "wb"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_c4_c5_fork(loop: str, mode: str, tmp_path: Path) -> None:
    """A forked child is refused everything, writes nothing that is its parent's, and disturbs it in nothing."""
    done = run_python(
        """
        import asyncio, gc, os, sys, uvloop, warnings, aiouring
        from asyncio import events
        from test_file_lifetimes import refused

        async def main():
            async with aiouring.open(sys.argv[1], sys.argv[3]) as file:
                await file.write(b"parent's, ")
                if "+" in sys.argv[3]:
                    await file.seek(0)
                    assert await file.read(3) == b"par"  # and more is here now
                pid = os.fork()
                if pid == 0:
                    events._set_running_loop(None)
                    wrong = asyncio.new_event_loop().run_until_complete(refused(file, sys.argv[3] == "wb"))
                    warnings.simplefilter("ignore")
                    del file
                    gc.collect()
                    os._exit(len(wrong))
                while True:
                    found, status = os.waitpid(pid, os.WNOHANG)
                    if found:
                        break
                    await asyncio.sleep(0.001)
                assert os.waitstatus_to_exitcode(status) == 0, status
                await file.seek(10)
                await file.write(b"and only its")
            with open(sys.argv[1], "rb") as found:
                assert found.read() == b"parent's, and only its"

        (asyncio if sys.argv[2] == "asyncio" else uvloop).run(main())
        """.replace("\n        ", "\n"),
        str(tmp_path / "file"),
        loop,
        mode,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("factory", LOOPS, ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
def test_c8_ctrl_c_at_random_moments(
    factory: Callable[[], asyncio.AbstractEventLoop], direct: bool, path: Path
) -> None:
    """Wherever Ctrl-C strikes, the file is closed with all that was written, which is what was handed over."""
    choose = random.Random(43)
    written: list[bytes] = []

    async def work() -> None:
        async with aiouring.open(path, "w+b", direct=direct) as file:
            while True:
                data = choose.randbytes(choose.choice([10, 5000, 300_000]))
                written.append(data)
                await file.write(data)
                if choose.randrange(20) == 0:
                    await choose.choice([file.sync, file.flush])()

    for _ in range(20):
        written.clear()
        path.write_bytes(b"")  # it may strike before the file is opened
        signal.setitimer(signal.ITIMER_VIRTUAL, choose.uniform(0.001, 0.03))
        before = signal.signal(signal.SIGVTALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        try:
            with pytest.raises(KeyboardInterrupt), asyncio.Runner(loop_factory=factory) as runner:
                runner.run(work())
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
        found, all_of_it = path.read_bytes(), b"".join(written)
        last = len(written[-1]) if written else 0
        assert found in (all_of_it, all_of_it[: len(all_of_it) - last])


async def test_c10_a_pipe_that_nobody_reads(ring: aiouring.AsyncRing) -> None:
    """It is BrokenPipeError, at the next call or at close(), and the file is closed."""
    for buffering in (-1, 0):
        reader, writer = os.pipe()
        file = await aiouring.open(writer, "wb", buffering, ring=ring)
        os.close(reader)
        with pytest.raises(BrokenPipeError) as caught:
            await file.write(b"data")
            await file.flush()
        assert caught.value.filename == writer
        assert aiouring.bytes_written(caught.value) == 0
        if buffering:
            with pytest.raises(BrokenPipeError):
                await file.close()
        await file.close()
        assert file._raw.closed


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_c14_eager_tasks(ring: aiouring.AsyncRing, path: Path) -> None:
    """Tasks that run before they are scheduled read, write and are cancelled as others."""

    def eager(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> "asyncio.Task[Any]":
        return asyncio.Task(work, **{**options, "loop": loop, "eager_start": True})

    asyncio.get_running_loop().set_task_factory(eager)
    async with aiouring.open(path, "r+b", ring=ring) as file:
        reads = [asyncio.create_task(file.read_at(1000, 1000 * at)) for at in range(50)]
        assert b"".join(await asyncio.gather(*reads)) == CONTENT[:50_000]
        parts = [asyncio.create_task(file.read(1000)) for _ in range(50)]
        assert b"".join(await asyncio.gather(*parts)) == CONTENT[:50_000]
        task = asyncio.create_task(file.write_at(b"new", 0))
        await task
        assert await file.read_at(3, 0) == b"new"


# ---- debugging -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_i3_debug_mode_has_nothing_to_say(loop: str, tmp_path: Path) -> None:
    """With asyncio's debug mode, warnings as errors and slow callbacks watched for, a file's whole life is silent."""
    script = """
        import asyncio, random, sys, uvloop, aiouring

        async def main():
            asyncio.get_running_loop().slow_callback_duration = 0.1  # 0.02 holds on a quiet machine
            assert asyncio.get_running_loop().get_debug()
            data = random.Random(44).randbytes(1_000_000)
            for options in ({}, {"buffering": 0}, {"direct": True}):
                async with aiouring.open(sys.argv[1], "w+b", **options) as file:
                    for at in range(0, len(data), 50_000):
                        await file.write(data[at : at + 50_000])
                    await file.sync()
                    await file.seek(0)
                    assert await file.read() == data
                    await file.seek(0)
                    assert b"".join([line async for line in file]) == data
                    await asyncio.gather(*(file.read_at(4096, 4096 * at) for at in range(100)))
                    for _ in range(20):
                        task = asyncio.create_task(file.read_at(100_000, 7))
                        await asyncio.sleep(0)
                        task.cancel()
                        await asyncio.wait([task])
                    await file.truncate(10)
            async with aiouring.open(sys.argv[1], "w", encoding="utf-8") as text:
                await text.writelines(["ä\\n"] * 1000)
            async with aiouring.open(sys.argv[1], encoding="utf-8") as text:
                assert len(await text.readlines()) == 1000
            await aiouring.copy_file(sys.argv[1], sys.argv[1] + ".copy")
            await aiouring.write_bytes(sys.argv[1], data, atomic=True)

        (asyncio if sys.argv[2] == "asyncio" else uvloop).run(main(), debug=True)
        """.replace("\n        ", "\n")
    for _ in range(3):  # a busy machine makes a callback slow that is not
        done = run_python(script, str(tmp_path / "file"), loop)
        assert done.returncode == 0, done.stderr
        if not done.stderr:
            return
        assert "Executing" in done.stderr
    raise AssertionError(done.stderr)
