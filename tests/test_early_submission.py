"""Tests of handing requests on files over before the turn's end, where the last ones were not answered at once."""

import asyncio
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from conftest import settle

import aiouring
from aiouring._turns import EARLY

SIZE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is in the page cache."""
    (tmp_path / "file").write_bytes(bytes(range(256)) * 16 * 64)
    return tmp_path / "file"


async def read_all(ring: aiouring.AsyncRing, file: BinaryIO, count: int) -> int:
    """Read many pages at a time; returns how many system calls submitted them."""
    before = ring.statistics().enters
    memories = [bytearray(SIZE) for _ in range(count)]
    got = await asyncio.gather(*(ring.read(file, memory, SIZE * at) for at, memory in enumerate(memories)))
    assert got == [SIZE] * count
    assert {bytes(memory) for memory in memories} == {bytes(range(256)) * 16}
    return ring.statistics().enters - before


def pipes(stack: ExitStack, count: int) -> tuple[list[BinaryIO], list[int]]:
    """Files that are not answered until somebody writes."""
    ends = [os.pipe() for _ in range(count)]
    for _, writer in ends:
        stack.callback(os.close, writer)
    return [stack.enter_context(open(reader, "rb", buffering=0)) for reader, _ in ends], [end[1] for end in ends]


async def wait_on(ring: aiouring.AsyncRing, stack: ExitStack, count: int) -> int:
    """Have the kernel wait on many pipes; returns how many system calls submitted that, before the answers came."""
    readers, writers = pipes(stack, count)
    before = ring.statistics().enters
    tasks = [asyncio.create_task(ring.read(reader, bytearray(8))) for reader in readers]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    enters = ring.statistics().enters - before
    for writer in writers:
        os.write(writer, b"x")
    assert await asyncio.gather(*tasks) == [1] * count
    return enters


async def test_what_is_answered_at_once_goes_in_one_piece(ring: aiouring.AsyncRing, path: Path) -> None:
    """The page cache."""
    await settle(ring)
    with path.open("rb", buffering=0) as file:
        for _ in range(3):
            assert await read_all(ring, file, 5 * EARLY) <= 2  # with the deferred profile one more to collect


async def test_what_takes_its_time_goes_in_pieces(ring: aiouring.AsyncRing, path: Path) -> None:
    """Pipes are answered late, so after the first many they are handed over early; the page cache ends that."""
    await settle(ring)
    with ExitStack() as stack:
        assert await wait_on(ring, stack, 3 * EARLY + 1) == 1
        assert await wait_on(ring, stack, 3 * EARLY + 1) == 4
        assert await wait_on(ring, stack, EARLY - 1) == 1
        assert await wait_on(ring, stack, 3 * EARLY + 1) == 4
        with path.open("rb", buffering=0) as file:
            await read_all(ring, file, EARLY)
        assert await wait_on(ring, stack, 3 * EARLY + 1) == 1


async def test_what_few_wait_for_goes_in_one_piece(ring: aiouring.AsyncRing) -> None:
    """Fewer than EARLY never are handed over early, and show nothing."""
    await settle(ring)
    with ExitStack() as stack:
        for _ in range(3):
            assert await wait_on(ring, stack, EARLY - 1) == 1


async def test_h1_a_file_closed_before_the_others_are_handed_over(ring: aiouring.AsyncRing, tmp_path: Path) -> None:
    """What is handed over early is looked at like the rest: its number may be another file's by then."""
    (tmp_path / "first").touch()
    (tmp_path / "second").touch()
    with ExitStack() as stack:
        await wait_on(ring, stack, EARLY)
        readers, writers = pipes(stack, EARLY - 1)
        first = (tmp_path / "first").open("r+b", buffering=0)
        number = first.fileno()

        async def replace() -> Any:
            first.close()
            second = stack.enter_context((tmp_path / "second").open("r+b", buffering=0))
            assert second.fileno() == number
            return await asyncio.gather(*(ring.read(reader, bytearray(8)) for reader in readers))

        writing = asyncio.create_task(ring.write(first, b"for the first", 0))
        replacing = asyncio.create_task(replace())
        for _ in range(5):
            await asyncio.sleep(0)
        for writer in writers:
            os.write(writer, b"x")
        assert await replacing == [1] * (EARLY - 1)
        with pytest.raises(OSError, match="Bad file descriptor"):
            await writing
    assert (tmp_path / "second").read_bytes() == b""


async def test_c8_interrupted_while_handing_over(ring: aiouring.AsyncRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt there is raised to the one whose request it was; it goes on alone, and the others as ever."""
    with ExitStack() as stack:
        await wait_on(ring, stack, EARLY)
        readers, writers = pipes(stack, EARLY)
        driver = ring._bound()

        def interrupted() -> None:
            raise KeyboardInterrupt

        async def last() -> str:
            monkeypatch.setattr(driver, "submit_queued", interrupted)
            try:
                await ring.read(readers[-1], bytearray(8))
            except KeyboardInterrupt:
                return "interrupted"
            finally:
                monkeypatch.undo()
            return "not interrupted"

        tasks = [asyncio.create_task(ring.read(reader, bytearray(8))) for reader in readers[:-1]]
        ending = asyncio.create_task(last())
        await asyncio.sleep(0)
        for writer in writers:
            os.write(writer, b"x")
        assert await ending == "interrupted"
        assert await asyncio.gather(*tasks) == [1] * (EARLY - 1)
        await settle(ring)
        assert ring.statistics().in_flight == 0


@pytest.mark.parametrize("there", [True, False], ids=["answered", "waiting"])
async def test_c8_interrupted_after_handing_over(
    ring: aiouring.AsyncRing, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """At the end of that turn, in which other entries were filled as well: the request has its memory, the byte comes.

    Answered in that turn, what it brought is the next read's; waiting, it is cancelled, and has its memory until then.
    """
    with ExitStack() as stack:
        await wait_on(ring, stack, EARLY)
        readers, writers = pipes(stack, EARLY)
        driver = ring._bound()
        if there:
            os.write(writers[-1], b"x")
        hand_over = driver.submit_queued

        def interrupted() -> None:
            hand_over()
            driver._cancel_number(1 << 40)  # which nobody has; so what is filled last is not the read
            raise KeyboardInterrupt

        async def last() -> int:
            monkeypatch.setattr(driver, "submit_queued", interrupted)
            try:
                await ring.read(readers[-1], bytearray(8))
            except KeyboardInterrupt:
                return ring.statistics().in_flight
            finally:
                monkeypatch.undo()
            return -1

        tasks = [asyncio.create_task(ring.read(reader, bytearray(8))) for reader in readers[:-1]]
        ending = asyncio.create_task(last())
        assert await ending == EARLY - there
        await settle(ring)
        for writer in writers[: EARLY - there]:
            os.write(writer, b"x")
        assert await asyncio.gather(*tasks) == [1] * (EARLY - 1)
        async with asyncio.timeout(2):
            assert await ring.read(readers[-1], bytearray(8)) == 1
        assert ring.statistics().in_flight == ring.statistics().strays == 0


async def test_c14_a_verb_begun_within_a_delivery(
    ring: aiouring.AsyncRing, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the `finally` of a coroutine that the garbage collector ends there: it waits for the next turn, and what is
    being delivered comes once.
    """
    driver, begun = ring._bound(), list[Any]()
    group = ring.register_buffer_ring(count=8, size=4)

    class Collecting(asyncio.Future[int]):
        def set_result(self, result: int) -> None:
            super().set_result(result)
            if not begun:
                begun.append(ring.read(late, bytearray(8)))
                begun[0].send(None)

    with ExitStack() as stack:
        await wait_on(ring, stack, EARLY)
        readers, writers = pipes(stack, EARLY + 1)
        late = readers.pop()
        async with ring.recv_multishot(pair[0], group) as stream:
            await settle(ring)
            await wait_on(ring, stack, EARLY)
            monkeypatch.setattr(driver, "new_future", lambda: Collecting(loop=driver.loop))
            tasks = [asyncio.create_task(ring.read(reader, bytearray(8))) for reader in readers]
            for writer in writers[:-1]:
                os.write(writer, b"x")
            pair[1].send(b"one two three")
            await asyncio.sleep(0)
            monkeypatch.undo()
            await asyncio.wait(tasks)
            assert begun
            begun[0].close()
            await settle(ring)
            found = b""
            while len(found) < 13:
                with await anext(stream) as chunk:
                    found += bytes(chunk.view)
        assert found == b"one two three"
        assert ring.statistics().strays == 0
