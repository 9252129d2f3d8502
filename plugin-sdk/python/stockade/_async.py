"""The one event loop on which async tools and hooks run."""

import asyncio
import threading
from concurrent.futures import Future

from stockade import _host

_loop: "asyncio.AbstractEventLoop" = None  # type: ignore[assignment]
_lock = threading.Lock()


def loop() -> asyncio.AbstractEventLoop:
    """The loop, started at the first use, on a thread of its own."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_run_for_ever, name="asyncio", daemon=True).start()
    return _loop


def _run_for_ever() -> None:
    while True:
        try:
            _loop.run_forever()
        except BaseException as error:
            # SystemExit of a task that nobody waits for: the others go on.
            print(f"<3>a task ended the event loop: {error!r}; it goes on")


def run(awaitable, ctx):
    """Runs ``awaitable`` on the loop and waits for its end; a cancelled call
    cancels it, and is over when it is."""
    ended: Future = Future()
    tasks = []

    async def guarded():
        # Nothing but a value leaves a task: SystemExit would end the loop.
        try:
            return await awaitable, None
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return None, error

    def finish(task):
        ended.set_result((None, asyncio.CancelledError()) if task.cancelled() else task.result())

    def start():
        task = _loop.create_task(guarded())
        task.add_done_callback(finish)
        tasks.append(task)

    def cancel():
        for task in tasks:
            task.cancel()

    running = loop()
    running.call_soon_threadsafe(start)
    if ctx is not None:
        ctx.on_cancel(lambda: running.call_soon_threadsafe(cancel))
    value, error = ended.result()
    if isinstance(error, asyncio.CancelledError):
        raise _host.Cancelled("the call was cancelled") from None
    if error is not None:
        raise error
    return value


def drain(generator, ctx):
    """Sends the items of an async generator: one task drives all of it, and waits
    off the loop while the client is behind."""

    async def pump():
        running = asyncio.get_running_loop()
        try:
            async for item in generator:
                await running.run_in_executor(None, ctx.emit, item)
        finally:
            await generator.aclose()

    return run(pump(), ctx)
