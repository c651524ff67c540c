"""The log as the worker sets it up, into a text that the test reads."""

import io
import json
from typing import Any, TextIO

import structlog

from worker.ops import logs


class Stream(io.TextIOWrapper):
    """A stream in memory, with bytes below its text as stderr has them."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "utf-8")


class Terminal(Stream):
    def isatty(self) -> bool:
        return True


class Log:
    """The lines logged since it was set up."""

    def __init__(self) -> None:
        self._stream: TextIO = Stream()

    def set_up(self, level: str = "info", style: Any = "json", stream: TextIO | None = None) -> None:
        self._stream = stream or Stream()
        logs.configure(level, style, self._stream)
        # a logger cached by a module would pass this set-up on to the tests after this one
        structlog.configure(cache_logger_on_first_use=False)

    @property
    def text(self) -> str:
        logs.QUEUE.wait()
        self._stream.seek(0)
        return self._stream.read()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def only_line(self) -> dict[str, Any]:
        """Return the only line there is, without its time."""
        (line,) = self.lines
        del line["timestamp"]
        return line
