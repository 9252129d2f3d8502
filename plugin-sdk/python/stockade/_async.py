"""The one event loop on which async tools and hooks run."""

import asyncio
import threading

from stockade import _host

_loop = None
_lock = threading.Lock()


def loop() -> asyncio.AbstractEventLoop:
    """The loop, started at the first use, on a thread of its own."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="asyncio", daemon=True).start()
    return _loop


def run(awaitable, ctx):
    """Runs ``awaitable`` on the loop and waits; a cancelled call cancels it."""

    async def wait():
        return await awaitable

    future = asyncio.run_coroutine_threadsafe(wait(), loop())
    if ctx is not None:
        ctx.on_cancel(future.cancel)
    try:
        return future.result()
    except (asyncio.CancelledError, _cancelled()):
        raise _host.Cancelled("the call was cancelled") from None


def _cancelled() -> type:
    from concurrent.futures import CancelledError

    return CancelledError


def drain(generator, ctx) -> None:
    """Sends the items of an async generator."""
    try:
        while True:
            ctx.emit(run(generator.__anext__(), ctx))
    except StopAsyncIteration:
        pass
    finally:
        run(generator.aclose(), None)
