"""Python's logging into the plugin's log, with its levels."""

import logging
import sys

# Levels of syslog, which the supervisor reads.
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            priority = next((p for level, p in _PRIORITIES if record.levelno >= level), 7)
            lines = "".join(f"<{priority}>{line}\n" for line in text.splitlines())
            if sys.stderr is not None:
                sys.stderr.write(lines)
        except Exception:
            self.handleError(record)


def configure() -> None:
    """Gives the root logger a handler, unless the plugin gave it one."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = _Handler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
