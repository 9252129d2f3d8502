"""What a call can come to besides a result: one class per ``error_type``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from stockade.client import Outcome


class StockadeError(Exception):
    """Everything that the client raises."""


class Unreachable(StockadeError):
    """No daemon answers there."""


class Refused(StockadeError):
    """The daemon did not do what was asked.

    :ivar status: the HTTP status.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class CallFailed(StockadeError):
    """A call gave no result. The tool's own exceptions are `ToolRaised`.

    :ivar outcome: everything that is known of the call.
    """

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"{outcome.error_type}: {outcome.error}")
        self.outcome = outcome

    @property
    def error_type(self) -> str:
        """The type as the daemon names it, or the class that the tool raised."""
        return self.outcome.error_type or ""

    @property
    def cause(self) -> Optional[str]:
        """Code of the cause when the process died (``crash``, ``oom_own``, …)."""
        return self.outcome.cause

    @property
    def delivered(self) -> bool:
        """Did the plugin receive the call? If not, a retry can do no harm."""
        return self.outcome.delivered

    @property
    def retry_after(self) -> Optional[float]:
        """Seconds after which a retry may work."""
        return self.outcome.retry_after


class PluginNotFound(CallFailed):
    """There is no such plugin."""


class ToolNotFound(CallFailed):
    """The plugin has no such tool."""


class PluginUnavailable(CallFailed):
    """The plugin is not running; the message says why and what to do."""


class InvalidArguments(CallFailed):
    """The arguments do not fit the tool's schema. The plugin has not seen them."""


class QueueFull(CallFailed):
    """Too many calls wait for the plugin."""


class CallTimeout(CallFailed):
    """The call took longer than it may."""


class CallCancelled(CallFailed):
    """The call was cancelled."""


class MemoryLimitExceeded(CallFailed):
    """The plugin was killed because it used more memory than it may."""


class WorkerCrashed(CallFailed):
    """The plugin's process died while it had the call."""


class PermissionDenied(CallFailed):
    """The caller may not do this."""


class PayloadTooLarge(CallFailed):
    """The arguments or the result are larger than allowed."""


class InvalidResult(CallFailed):
    """The tool returned what is not JSON, or not what its schema says."""


class ToolRaised(CallFailed):
    """The tool raised; ``error_type`` is the class of its exception."""


_CLASSES = {
    "PluginNotFound": PluginNotFound,
    "ToolNotFound": ToolNotFound,
    "PluginUnavailable": PluginUnavailable,
    "InvalidArguments": InvalidArguments,
    "QueueFull": QueueFull,
    "TimeoutError": CallTimeout,
    "Cancelled": CallCancelled,
    "MemoryLimitExceeded": MemoryLimitExceeded,
    "WorkerCrashed": WorkerCrashed,
    "PermissionDenied": PermissionDenied,
    "PayloadTooLarge": PayloadTooLarge,
    "InvalidResult": InvalidResult,
}


# What the plugin's host says in the tool's name.
_OF_THE_HOST = ("InvalidArguments", "PayloadTooLarge", "Cancelled")


def of(outcome: Outcome) -> CallFailed:
    """The exception of a failed call."""
    if outcome.raised and outcome.error_type not in _OF_THE_HOST:
        return ToolRaised(outcome)
    return _CLASSES.get(outcome.error_type or "", ToolRaised)(outcome)
