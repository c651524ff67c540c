"""A caller that logs never waits for a slow reader: lines dropped then, their count, and the lines written again."""

import fcntl
import io
import json
import logging
import os
import threading
from collections.abc import Callable
from errno import ENOSPC
from typing import Any

import pytest

from worker.ops import log_queue
from worker.ops.log_queue import LogQueue


class Form(logging.Formatter):
    """A line as the log has it, as far as these tests look at it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {key: value for key, value in vars(record).items() if key in ("count", "error", "pad")}
        return json.dumps({"event": record.getMessage(), **fields})


@pytest.fixture
def queue() -> LogQueue:
    made = LogQueue()
    made.setFormatter(Form())
    return made


def put(queue: LogQueue, event: object, pad: str = "") -> None:
    queue.handle(logging.makeLogRecord({"msg": str(event), "pad": pad}))


class Pipe:
    """A pipe with room for one page, which nothing reads until `read`."""

    def __init__(self, queue: LogQueue) -> None:
        self._queue = queue
        self._out, into = os.pipe()
        self.size = fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 4096)
        self.into = os.fdopen(into, "w")
        queue.write_to(self.into)

    def read(self) -> list[dict[str, Any]]:
        """Return all lines there are, in order."""
        with os.fdopen(self._out, "rb") as out:
            text: list[bytes] = []
            reader = threading.Thread(target=lambda: text.append(out.read()))
            reader.start()
            self._queue.wait()
            self.into.close()
            reader.join()
        return [json.loads(line) for line in text[0].splitlines()]


@pytest.fixture
def pipe(queue: LogQueue) -> Pipe:
    return Pipe(queue)


def test_where_nobody_reads_the_oldest_lines_go_and_how_many_is_written_in_their_place(
    queue: LogQueue, pipe: Pipe
) -> None:
    count = log_queue.MAX_LINES + 2000
    for number in range(count):
        put(queue, number)
    assert queue.dropped > 0
    lines = [line["event"] for line in pipe.read()]
    at = lines.index("worker.log_lines_dropped")
    before, after = [*map(int, lines[:at])], [*map(int, lines[at + 1 :])]
    assert before == [*range(len(before))]
    assert after == [*range(count - log_queue.MAX_LINES, count)]
    assert len(before) + queue.dropped + len(after) == count


def test_the_line_that_tells_how_many_were_dropped_has_the_number(queue: LogQueue, pipe: Pipe) -> None:
    for number in range(log_queue.MAX_LINES + 2000):
        put(queue, number)
    (line,) = (line for line in pipe.read() if line["event"] == "worker.log_lines_dropped")
    assert line["count"] == queue.dropped


def test_few_long_lines_are_bounded_by_their_size(queue: LogQueue, pipe: Pipe) -> None:
    size = 100_000
    for number in range(200):
        put(queue, number, "x" * size)
    remaining_lines = [line for line in pipe.read() if "pad" in line]
    assert log_queue.MAX_BYTES - 2 * size < sum(len(line["pad"]) for line in remaining_lines[1:]) <= log_queue.MAX_BYTES
    assert remaining_lines[-1]["event"] == "199"


def test_the_end_waits_for_a_reader_only_so_long(queue: LogQueue, pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_queue, "_FLUSH_TIMEOUT", 0.01)
    for number in range(1000):
        put(queue, number)
    queue.flush()  # and returns
    assert [line["event"] for line in pipe.read()] == [str(number) for number in range(1000)]


def test_a_stream_that_the_parent_made_non_blocking_loses_nothing(queue: LogQueue, pipe: Pipe) -> None:
    """It is one open file for both, and the flag belongs to that."""
    os.set_blocking(pipe.into.fileno(), False)
    for number in range(1000):
        put(queue, number)
    assert [line["event"] for line in pipe.read()] == [str(number) for number in range(1000)]


class Disk(io.RawIOBase):
    """A file with so much room: what a full disk does to a write, byte by byte."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.text = b""
        self.stream = io.TextIOWrapper(io.BufferedWriter(self))

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        fits = bytes(data)[: self.room]
        self.room -= len(fits)
        self.text += fits
        return len(fits)


def test_after_a_full_disk_a_line_begins_on_a_line_of_its_own_and_the_lost_ones_are_counted(queue: LogQueue) -> None:
    whole = len(b'{"event": "0", "pad": ""}\n')
    for cut in range(whole):
        disk = Disk(whole + cut)
        queue.write_to(disk.stream)
        for number in range(4):
            put(queue, number)
        queue.wait()
        disk.room = 10_000
        put(queue, 4)
        queue.wait()
        first, *torn, dropped, last = disk.text.splitlines()
        assert [json.loads(line)["event"] for line in (first, dropped, last)] == ["0", "worker.log_lines_dropped", "4"]
        assert json.loads(dropped)["count"] == 3
        assert b"".join(torn) == b'{"event": "1", "pad": ""}'[:cut]


def test_where_no_thread_can_be_had_the_caller_writes(queue: LogQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(10_000)
    queue.write_to(disk.stream)

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        put(queue, 0)
        assert len(disk.text.splitlines()) == 1
    put(queue, 1)
    queue.wait()
    assert [json.loads(line)["event"] for line in disk.text.splitlines()] == ["0", "1"]


def test_a_destructor_may_log_while_a_line_is_put(queue: LogQueue) -> None:
    """The garbage collection may call it anywhere, also while the queue's lock is taken."""
    disk = Disk(10_000)
    queue.write_to(disk.stream)

    class Nested(Form):
        def __init__(self) -> None:
            super().__init__()
            self.then: Callable[[], object] | None = lambda: put(queue, "inner")

        def format(self, record: logging.LogRecord) -> str:
            then, self.then = self.then, None
            if then:
                with queue._changed:  # noqa: SLF001 - as where the collection runs amid a put
                    then()
            return super().format(record)

    queue.setFormatter(Nested())
    put(queue, "outer")
    queue.wait()
    assert {json.loads(line)["event"] for line in disk.text.splitlines()} == {"inner", "outer"}
