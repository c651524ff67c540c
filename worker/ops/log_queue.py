"""A log handler whose callers never wait for the log's reader: a bounded queue, and one thread that writes."""

import logging
import select
import sys
import threading
from collections import deque
from typing import Any, Final, TextIO

MAX_LINES: Final = 10_000
MAX_BYTES: Final = 8 * 1024 * 1024
"""Limits of the queue; beyond either one the oldest line is dropped."""
_FLUSH_TIMEOUT: Final = 1.0
"""Seconds that the end of the process waits for a reader."""


class LogQueue(logging.Handler):
    """Hand each line to a thread that writes them, so that the caller never waits for the stream.

    The stream stays in blocking mode: stderr is shared with the parent, who would be surprised. The logging module
    flushes each handler when the interpreter exits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0
        """Lines since the start that nobody read, or that did not fit on the disk."""
        self._stream: TextIO = sys.stderr
        self._file: Any = None
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._unreported = 0
        self._is_truncated = False
        """The last line that was written ends in the middle."""
        self._is_writing = False
        self._writer: threading.Thread | None = None
        # reentrant, as the logging module's own: a destructor may log in the middle of anything
        self._changed = threading.Condition()

    def write_to(self, stream: TextIO) -> None:
        self.flush()
        self._stream = stream
        # not its buffer: a thread that waits in there is a fatal error when the interpreter exits
        self._file = getattr(stream.buffer, "raw", stream.buffer)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
        except Exception:  # noqa: BLE001 - whatever it is, the caller goes on
            self.handleError(record)
        else:
            self._put(line)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Log that a line could not be made, without its content, which the logging module would print."""
        error = f"a log line failed: {type(sys.exception()).__name__}"
        self._put(self._line(_record(logging.ERROR, "worker.internal_error", error=error, logger=record.name)))

    def flush(self) -> None:
        """Wait until all lines are written, but not for long: there may be no reader."""
        self._wait(_FLUSH_TIMEOUT)

    def wait(self) -> None:
        """Wait until all lines are written, however long the reader takes."""
        while not self._wait(_FLUSH_TIMEOUT):
            pass  # in short waits: Python does not see a signal that comes just before a wait until that is over

    def _wait(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._is_writing, timeout)

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(self._stream.encoding, "backslashreplace")

    def _put(self, line: bytes) -> None:
        with self._changed:
            self._lines.append(line)
            self._size += len(line)
            while len(self._lines) > MAX_LINES or self._size > MAX_BYTES:
                self._size -= len(self._lines.popleft())
                self._drop()
            self._changed.notify_all()
            has_writer = self._has_writer()
        if not has_writer:
            self._write_lines()

    def _has_writer(self) -> bool:
        """Start the thread where there is none. Return False where the machine has no room for one."""
        if self._writer is None or not self._writer.is_alive():
            writer = threading.Thread(target=self._run, name="log", daemon=True)
            try:
                writer.start()
            except RuntimeError:
                return False
            self._writer = writer
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines and not self._is_writing)
            self._write_lines()

    def _write_lines(self) -> None:
        """Write what is queued, unless another thread does."""
        while True:
            with self._changed:
                if self._is_writing or not self._lines:
                    return
                self._is_writing = True
                line = self._lines.popleft()
                self._size -= len(line)
            written = False
            try:
                written = self._report_dropped() and self._write(line)
            finally:
                with self._changed:
                    if not written:
                        self._drop()
                    self._is_writing = False
                    self._changed.notify_all()

    def _drop(self) -> None:
        self.dropped += 1
        self._unreported += 1

    def _report_dropped(self) -> bool:
        """Write how many lines are missing here. Return False if even that cannot be written."""
        with self._changed:
            count, self._unreported = self._unreported, 0
        if not count or self._write(self._line(_record(logging.WARNING, "worker.log_lines_dropped", count=count))):
            return True
        with self._changed:
            self._unreported += count
        return False

    def _write(self, line: bytes) -> bool:
        """Write the line, after a line break if the one before it was cut. Return False if it could not be written."""
        data = b"\n" + line if self._is_truncated else line
        offset = 0
        try:
            while offset < len(data):
                written = self._file.write(data[offset:])
                if written is None:  # the parent has set what we share to non-blocking
                    select.select([], [self._file], [])
                offset += written or 0
        except (OSError, ValueError):  # the disk is full, the reader or the stream is gone
            if offset:
                self._is_truncated = not data[:offset].endswith(b"\n")
            return False
        self._is_truncated = False
        return True


def _record(level: int, event: str, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord("worker", level, "", 0, event, None, None)
    vars(record).update(fields)
    return record
