"""Log lines: text for people, JSON for machines. Never with an address or a key in them."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")


class JsonFormatter(logging.Formatter):
    """One object a line: ts, level, logger, message, and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logs(log_format: Literal["auto", "text", "json"]) -> None:
    """Send all log lines to standard error."""
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # aiohttp logs requests that were refused with a trace each; those are no news of ours.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
