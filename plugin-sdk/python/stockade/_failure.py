"""What an exception says: class, message, traceback."""

import os

# A caller reads a message, not a file; of a traceback the end tells most.
_MESSAGE = 16 * 1024
_TRACEBACK = 64 * 1024

_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep


def describe(error: BaseException) -> "tuple[str, str, str]":
    """Class, message and traceback of ``error``, without our own frames."""
    name = type(error).__name__
    if name == "CancelledError":
        name = "Cancelled"
    try:
        message = str(error)
    except Exception as broken:
        message = f"<str() raised {type(broken).__name__}>"
    if len(message) > _MESSAGE:
        message = f"{message[:_MESSAGE]} … ({len(message)} characters)"
    return name, _printable(message), _printable(_traceback(error)[-_TRACEBACK:])


def _traceback(error: BaseException) -> str:
    from traceback import format_exception

    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_OWN):
        frame = frame.tb_next
    try:
        return "".join(format_exception(type(error), error, frame or error.__traceback__))
    except Exception as broken:
        return f"<no traceback: {type(broken).__name__}>"


def _printable(text: str) -> str:
    """Text that is Unicode: lone surrogates are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
