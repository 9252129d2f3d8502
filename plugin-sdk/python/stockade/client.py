"""Call plugins from a Python server: `Client`, and `AsyncClient` for asyncio.

Both speak to the daemon's unix socket or to its port, keep their connections
and may be shared: `Client` by threads, `AsyncClient` by tasks of one loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from typing import Any, Optional

import httpx

from stockade import _wire, errors
from stockade._wire import Event, Outcome, Progress

__all__ = ["AsyncClient", "Client", "Event", "Outcome", "Progress"]


class Client:
    """Calls plugins, blocking.

    :param target: the path of the daemon's unix socket or ``http://host:port``;
        by default ``$STOCKADE_SOCKET``, else where the daemon's socket usually is.
    :param token: what opens the port (``stockade token``); by default
        ``$STOCKADE_TOKEN``.
    """

    def __init__(self, target: _wire.Target = None, token: Optional[str] = None) -> None:
        self._base, self._socket = _wire.place(target)
        transport = httpx.HTTPTransport(uds=self._socket) if self._socket else None
        self._http = httpx.Client(
            base_url=self._base, transport=transport, timeout=30, headers=_wire.authorization(token)
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def _send(self, **request: Any) -> httpx.Response:
        try:
            return self._http.request(**request)
        except httpx.TransportError as error:
            raise _wire.unreachable(error, self._base, self._socket) from error

    def run_tool(
        self,
        plugin: str,
        tool: str,
        /,
        args: Optional[Mapping[str, Any]] = None,
        *,
        timeout: Optional[float] = None,
        workspace: str = "",
        check: bool = True,
        **more: Any,
    ) -> Outcome:
        """Calls a tool; arguments by name, or in ``args``. Bytes, `Blob` and
        numpy arrays travel as attachments.

        :param timeout: seconds; None = the plugin's own.
        :param check: raise when the call gave no result.
        :raises errors.CallFailed: a subclass per ``error_type``.
        """
        outcome = self.call(plugin, tool, {**(args or {}), **more}, timeout, workspace)
        if check:
            outcome.unwrap()
        return outcome

    def call(
        self,
        plugin: str,
        tool: str,
        args: Mapping[str, Any],
        timeout: Optional[float] = None,
        workspace: str = "",
    ) -> Outcome:
        """Calls a tool; a failed call is an outcome, not an exception."""
        return _wire.outcome(
            self._send(**_wire.call_request(plugin, tool, args, timeout, workspace))
        )

    def stream(
        self,
        plugin: str,
        tool: str,
        /,
        args: Optional[Mapping[str, Any]] = None,
        *,
        timeout: Optional[float] = None,
        workspace: str = "",
        **more: Any,
    ) -> Generator[Any, None, Outcome]:
        """The items of a streamed result as they come. `Progress` objects come
        between them; bytes in items are base64 text. Leaving the loop cancels the
        call. The generator's return value is the call's `Outcome`.

        :raises errors.CallFailed: the call failed, perhaps after some items.
        """
        request = _wire.call_request(plugin, tool, {**(args or {}), **more}, timeout, workspace)
        request["headers"]["accept"] = _wire.LINES
        try:
            with self._http.stream(**request) as response:
                if not _wire.streams(response, _wire.LINES):
                    response.read()
                    raise _wire.refusal(response)
                for line in response.iter_lines():
                    update = _wire.update(line)
                    if isinstance(update, Outcome):
                        update.unwrap()
                        return update
                    yield update[1] if isinstance(update, tuple) else update
                raise errors.Unreachable("the stream ended without an outcome")
        except httpx.TransportError as error:
            raise _wire.unreachable(error, self._base, self._socket) from error

    def plugins(self) -> "list[dict]":
        """The health of every plugin, sorted by name."""
        return _wire.checked(self._send(method="GET", url="/v1/plugins"))["plugins"]

    def health(self, plugin: str) -> dict:
        """The health of one plugin: ``state``, ``reason``, ``generation``, …

        :raises errors.Refused: there is no such plugin (status 404).
        """
        return _wire.checked(
            self._send(method="GET", url=f"/v1/plugins/{_wire.segment(plugin)}/health")
        )

    def tools(self, plugin: str) -> "list[dict]":
        """Name, description and schemas of a plugin's tools."""
        return _wire.checked(
            self._send(method="GET", url=f"/v1/plugins/{_wire.segment(plugin)}/tools")
        )["tools"]

    def watch(self) -> Iterator[Event]:
        """What happens to plugins, as it happens."""
        reader = _wire.EventReader()
        request: dict = {"method": "GET", "url": "/v1/events", "headers": {"accept": _wire.EVENTS}}
        try:
            with self._http.stream(**request, timeout=None) as response:
                if not _wire.streams(response, _wire.EVENTS):
                    response.read()
                    raise _wire.refusal(response)
                for line in response.iter_lines():
                    event = reader.line(line)
                    if event is not None:
                        yield event
        except httpx.TransportError as error:
            raise _wire.unreachable(error, self._base, self._socket) from error


class AsyncClient:
    """Calls plugins from asyncio. Cancelling a task cancels its call.

    :param target: as for `Client`.
    :param token: as for `Client`.
    """

    def __init__(self, target: _wire.Target = None, token: Optional[str] = None) -> None:
        self._base, self._socket = _wire.place(target)
        transport = httpx.AsyncHTTPTransport(uds=self._socket) if self._socket else None
        self._http = httpx.AsyncClient(
            base_url=self._base, transport=transport, timeout=30, headers=_wire.authorization(token)
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def _send(self, **request: Any) -> httpx.Response:
        try:
            return await self._http.request(**request)
        except httpx.TransportError as error:
            raise _wire.unreachable(error, self._base, self._socket) from error

    async def run_tool(
        self,
        plugin: str,
        tool: str,
        /,
        args: Optional[Mapping[str, Any]] = None,
        *,
        timeout: Optional[float] = None,
        workspace: str = "",
        check: bool = True,
        **more: Any,
    ) -> Outcome:
        """As `Client.run_tool`."""
        outcome = await self.call(plugin, tool, {**(args or {}), **more}, timeout, workspace)
        if check:
            outcome.unwrap()
        return outcome

    async def call(
        self,
        plugin: str,
        tool: str,
        args: Mapping[str, Any],
        timeout: Optional[float] = None,
        workspace: str = "",
    ) -> Outcome:
        """As `Client.call`."""
        return _wire.outcome(
            await self._send(**_wire.call_request(plugin, tool, args, timeout, workspace))
        )

    async def stream(
        self,
        plugin: str,
        tool: str,
        /,
        args: Optional[Mapping[str, Any]] = None,
        *,
        timeout: Optional[float] = None,
        workspace: str = "",
        **more: Any,
    ) -> AsyncIterator[Any]:
        """As `Client.stream`, without a return value."""
        request = _wire.call_request(plugin, tool, {**(args or {}), **more}, timeout, workspace)
        request["headers"]["accept"] = _wire.LINES
        try:
            async with self._http.stream(**request) as response:
                if not _wire.streams(response, _wire.LINES):
                    await response.aread()
                    raise _wire.refusal(response)
                async for line in response.aiter_lines():
                    update = _wire.update(line)
                    if isinstance(update, Outcome):
                        update.unwrap()
                        return
                    yield update[1] if isinstance(update, tuple) else update
        except httpx.TransportError as error:
            raise _wire.unreachable(error, self._base, self._socket) from error

    async def plugins(self) -> "list[dict]":
        """As `Client.plugins`."""
        return _wire.checked(await self._send(method="GET", url="/v1/plugins"))["plugins"]

    async def health(self, plugin: str) -> dict:
        """As `Client.health`."""
        return _wire.checked(
            await self._send(method="GET", url=f"/v1/plugins/{_wire.segment(plugin)}/health")
        )

    async def tools(self, plugin: str) -> "list[dict]":
        """As `Client.tools`."""
        return _wire.checked(
            await self._send(method="GET", url=f"/v1/plugins/{_wire.segment(plugin)}/tools")
        )["tools"]

    async def watch(self) -> AsyncIterator[Event]:
        """As `Client.watch`."""
        reader = _wire.EventReader()
        request: dict = {"method": "GET", "url": "/v1/events", "headers": {"accept": _wire.EVENTS}}
        try:
            async with self._http.stream(**request, timeout=None) as response:
                if not _wire.streams(response, _wire.EVENTS):
                    await response.aread()
                    raise _wire.refusal(response)
                async for line in response.aiter_lines():
                    event = reader.line(line)
                    if event is not None:
                        yield event
        except httpx.TransportError as error:
            raise _wire.unreachable(error, self._base, self._socket) from error
