"""Requests and replies of the daemon's HTTP: the same for both clients."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Union
from urllib.parse import quote

import httpx

from stockade import errors

# A path of a socket, or a URL.
Target = Union[str, "os.PathLike[str]", None]

_JSON = "application/json"
_PARTS = "multipart/form-data"
LINES = "application/x-ndjson"
EVENTS = "text/event-stream"
# Seconds; longer than any call lives.
_LONGEST = 10_000_000.0


@dataclass(frozen=True)
class Outcome:
    """What came of a call.

    :ivar ok: there is a result.
    :ivar result: JSON; bytes and numpy arrays of the tool stand where it put them.
    :ivar error: the message.
    :ivar error_type: ``PluginNotFound``, …, or the class that the tool raised.
    :ivar generation: which process of the plugin had the call. When it changes,
        the plugin was restarted and has lost what it held in memory.
    :ivar delivered: the plugin received the call.
    :ivar cause: why the process died, if it did.
    :ivar duration_ms: from arrival to end, in the daemon.
    :ivar retry_after: seconds after which a retry may work.
    :ivar raised: the error is the tool's own exception.
    """

    ok: bool
    result: Any = None
    error: Optional[str] = None
    error_type: Optional[str] = None
    plugin: str = ""
    tool: str = ""
    duration_ms: float = 0.0
    call_id: str = ""
    generation: int = 0
    delivered: bool = False
    cause: Optional[str] = None
    retry_after: Optional[float] = field(default=None, compare=False)
    raised: bool = field(default=False, compare=False)

    def unwrap(self) -> Any:
        """The result.

        :raises errors.CallFailed: there is none.
        """
        if not self.ok:
            raise errors.of(self)
        return self.result


@dataclass(frozen=True)
class Progress:
    """How far a streamed call is: ``fraction`` from 0 to 1."""

    fraction: float
    message: str


@dataclass(frozen=True)
class Event:
    """Something happened to a plugin."""

    kind: str
    data: dict


def _default_target() -> str:
    named = os.environ.get("STOCKADE_SOCKET")
    if named:
        return named
    if os.geteuid() == 0:
        return "/run/stockade/stockade.sock"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime):
        return os.path.join(runtime, "stockade/stockade.sock")
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "stockade/stockade.sock")


def place(target: Target) -> "tuple[str, Optional[str]]":
    """Base URL and, for a unix socket, its path."""
    target = os.fspath(target or _default_target())
    if target.startswith(("http://", "https://")):
        return target.rstrip("/"), None
    return "http://localhost", target.removeprefix("unix:")


def authorization(token: Optional[str]) -> "dict[str, str]":
    token = (token or os.environ.get("STOCKADE_TOKEN") or "").strip()
    if not token:
        return {}
    if not token.isascii() or not token.isprintable():
        raise ValueError("the token has characters that no token has")
    return {"authorization": f"Bearer {token}"}


def segment(name: str) -> str:
    """A name as one segment of a path, whatever it holds."""
    if name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no name of a plugin or a tool")
    return quote(name, safe="")


def call_request(plugin: str, tool: str, args: Mapping[str, Any], timeout, workspace) -> dict:
    """The request of one call, as httpx takes it."""
    plain: dict = {}
    parts: list = []
    for name, value in args.items():
        binary = _binary(value)
        if binary is not None:
            parts.append((name, binary))
        elif isinstance(value, (list, tuple)) and value and all(map(_is_binary, value)):
            parts.extend((name, _binary(one)) for one in value)
        else:
            plain[name] = value.item() if _is_scalar(value) else value
    request: dict = {
        "method": "POST",
        "url": f"/v1/plugins/{segment(plugin)}/tools/{segment(tool)}/run",
        "headers": {"accept": _PARTS},
    }
    if timeout is not None:
        timeout = min(max(float(timeout), 0.001), _LONGEST)
        request["headers"]["stockade-timeout-ms"] = str(int(timeout * 1000))
    if workspace:
        if not workspace.isascii() or not workspace.isprintable():
            raise ValueError(f"{workspace!r} is no name of a workspace")
        request["headers"]["stockade-workspace"] = workspace
    if parts:
        files = [("args", (None, json.dumps(plain), _JSON))]
        files += [(name, (name, data, kind)) for name, (data, kind) in parts]
        request["files"] = files
    else:
        request["json"] = {"args": plain}
    # The daemon knows the deadline; the client waits a little longer.
    request["timeout"] = None if timeout is None else timeout + 30
    return request


def _is_scalar(value: Any) -> bool:
    return type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()


def _is_binary(value: Any) -> bool:
    return _binary(value) is not None


def _binary(value: Any) -> "Optional[tuple[bytes, str]]":
    """Bytes and content type of an argument that travels as an attachment."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), "application/octet-stream"
    if type(value).__name__ == "Blob" and hasattr(value, "content_type"):
        return value.data, value.content_type or "application/octet-stream"
    if type(value).__module__ == "numpy" and hasattr(value, "dtype") and value.shape != ():
        from stockade import _numpy

        blob = _numpy.blob(value)
        return blob.data, blob.content_type
    return None


def outcome(response: httpx.Response) -> Outcome:
    kind = response.headers.get("content-type", "")
    if kind.startswith(_PARTS):
        first, parts = _parts(response.content, kind)
        read = json.loads(_marked(first))
        read["result"] = _fill(read["result"], parts)
    else:
        read = _body(response)
        if "ok" not in read:
            raise errors.Refused(response.status_code, str(read.get("detail", response.text)))
    return _from(read, response.headers.get("retry-after"))


def _from(read: dict, retry_after: Optional[str] = None) -> Outcome:
    known = {name: read[name] for name in Outcome.__dataclass_fields__ if name in read}
    if retry_after is not None:
        known["retry_after"] = float(retry_after)
    return Outcome(**known)


def _body(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        raise errors.Refused(response.status_code, response.text[:500]) from None


def _parts(body: bytes, kind: str) -> "tuple[bytes, dict[str, tuple[bytes, str]]]":
    """The first part of a multipart body of the daemon, the outcome, and the
    attachments: name → (content, content type)."""
    boundary = b"--" + kind.partition("boundary=")[2].strip('"').encode()
    first = None
    found = {}
    for part in body.split(boundary)[1:-1]:
        head, _, data = part.partition(b"\r\n\r\n")
        fields = {}
        for line in head.decode().strip().split("\r\n"):
            key, _, value = line.partition(":")
            fields[key.strip().lower()] = value.strip()
        if first is None:
            first = data[:-2]
            continue
        name = fields["content-disposition"].partition('name="')[2].rpartition('"')[0]
        for escaped, plain in _ESCAPES:
            name = name.replace(escaped, plain)
        found[name] = (data[:-2], fields.get("content-type", ""))
    return first or b"{}", found


# What a name in a multipart head cannot hold (WHATWG).
_ESCAPES = (("%22", '"'), ("%0D", "\r"), ("%0A", "\n"))


def _fill(value: Any, parts: dict) -> Any:
    """Puts attachments where the result names them."""
    if isinstance(value, str) and value.startswith(_MARK):
        part = parts.get(value[len(_MARK) :])
        return value[1:] if part is None else _attached(*part)
    if isinstance(value, list):
        return [_fill(item, parts) for item in value]
    if isinstance(value, dict):
        return {_key(key): _fill(item, parts) for key, item in value.items()}
    return value


# A reference to an attachment, told apart from text that says the same: the daemon
# writes that text with an escape in it.
_MARK = "\0attachment:"


def _marked(text: bytes) -> bytes:
    # Not behind a backslash: there it is within a text.
    return re.sub(rb'(?<!\\)"attachment:', rb'"\\u0000attachment:', text)


def _key(key: str) -> str:
    return key[1:] if key.startswith(_MARK) else key


def _attached(data: bytes, kind: str) -> Any:
    if kind == "application/x-npy":
        try:
            from stockade import _numpy
        except ImportError:
            return data
        return _numpy.array(memoryview(data))
    return data


def checked(response: httpx.Response) -> Any:
    body = _body(response)
    if response.is_success:
        return body
    raise errors.Refused(response.status_code, str(body.get("detail", response.text)))


def update(line: str) -> "Union[Progress, Outcome, tuple]":
    ((kind, value),) = json.loads(line).items()
    if kind == "progress":
        return Progress(value["fraction"], value["message"])
    if kind == "outcome":
        return _from(value)
    return ("item", value)


def refusal(response: httpx.Response) -> Exception:
    """Why the daemon did not begin what was asked for. The body has been read."""
    body = _body(response)
    if "ok" in body:
        return errors.of(_from(body, response.headers.get("retry-after")))
    return errors.Refused(response.status_code, str(body.get("detail", response.text)))


def streams(response: httpx.Response, kind: str) -> bool:
    return response.is_success and response.headers.get("content-type", "").startswith(kind)


class EventReader:
    """Cuts server-sent events out of lines."""

    def __init__(self) -> None:
        self.kind = "message"

    def line(self, line: str) -> Optional[Event]:
        if line.startswith("event:"):
            self.kind = line[6:].strip()
        elif line.startswith("data:"):
            return Event(self.kind, json.loads(line[5:]))
        return None


def unreachable(error: httpx.TransportError, base: str, socket: Optional[str]) -> Exception:
    return errors.Unreachable(f"no daemon answers at {socket or base}: {error}")
