"""Log lines: one JSON object a line on stderr, through the standard ``logging`` module.

``logs.setup("fabric")`` once at a process's start; everywhere else ``logging.getLogger(__name__)``, with values that
a reader would search for in ``extra={"fields": {...}}``.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import sys
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """Formats a record as ``{"time", "level", "process", "logger", "message", **fields}`` (time in UTC, RFC 3339)."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def setup(process: str, *, level: int = logging.INFO) -> logging.Logger:
    """Send this process's log to stderr as JSON lines; returns the logger ``innkeeper``.

    A crash below Python leaves the stack of every thread there too.
    """
    faulthandler.enable()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    return logging.getLogger("innkeeper")
