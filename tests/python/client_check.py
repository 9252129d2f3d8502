"""The client against a real daemon: every promise of its documentation. The
daemon (``$STOCKADE_SOCKET``; its port is the first argument) has the plugins
``typed`` (see clients.rs) and ``good``."""

import asyncio
import contextlib
import sys
import threading

import numpy
import stockade
from stockade import AsyncClient, Blob, CallFailed, Client, errors
from stockade.client import Progress

URL = sys.argv[1]


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def blocking(client):
    outcome = client.run_tool("typed", "greet", name="Ada")
    assert outcome.result == "Hello, Ada!", outcome
    assert outcome.ok and outcome.generation == 1 and outcome.delivered and outcome.call_id
    assert client.run_tool("typed", "greet", {"name": "Eve"}, timeout=5).unwrap() == "Hello, Eve!"

    # Bytes there and back, several of one name, with their types.
    echoed = client.run_tool("typed", "echo", data=b"\x00\r\n--\xff").result
    assert echoed == {"copy": b"\x00\r\n--\xff", "kind": "application/octet-stream"}, echoed
    echoed = client.run_tool("typed", "echo", data=Blob(bytearray(b"jpg"), "image/jpeg")).result
    assert echoed == {"copy": b"jpg", "kind": "image/jpeg"}, echoed
    assert client.run_tool("typed", "echo", data=memoryview(b"view")).result["copy"] == b"view"
    assert client.run_tool("typed", "lengths", frames=[b"a", b"bc"], scale=2).result == [2, 4]

    # Arrays too.
    array = numpy.arange(12, dtype="int16").reshape(3, 4)
    doubled = client.run_tool("typed", "double", array=array).result
    assert (doubled == array * 2).all() and doubled.dtype == array.dtype, doubled

    # One class per error_type.
    error = raises(errors.PluginNotFound, lambda: client.run_tool("nobody", "greet"))
    assert isinstance(error, CallFailed) and not error.delivered
    raises(errors.ToolNotFound, lambda: client.run_tool("typed", "nothing"))
    error = raises(errors.InvalidArguments, lambda: client.run_tool("typed", "greet", name=1))
    assert "name" in str(error) and not error.delivered
    error = raises(errors.ToolRaised, lambda: client.run_tool("typed", "fail"))
    assert error.error_type == "KeyError" and error.delivered
    raises(errors.CallTimeout, lambda: client.run_tool("typed", "nap", seconds=60, timeout=0.1))
    error = raises(errors.WorkerCrashed, lambda: client.run_tool("typed", "die"))
    assert error.cause == "crash"
    outcome = client.run_tool("typed", "greet", name="Ada")
    assert outcome.generation == 2, "the client sees that state was lost"
    outcome = client.run_tool("typed", "fail", check=False)
    assert (outcome.ok, outcome.error_type) == (False, "KeyError")
    raises(errors.ToolRaised, outcome.unwrap)

    def outcome_of(stream):
        while True:
            try:
                next(stream)
            except StopIteration as end:
                return end.value

    assert outcome_of(client.stream("typed", "count", n=2)).ok
    items = list(client.stream("typed", "count", n=20))
    assert [item for item in items if not isinstance(item, Progress)] == list(range(20)), items
    assert any(isinstance(item, Progress) for item in items)
    raises(errors.ToolRaised, lambda: list(client.stream("typed", "count", n=-1)))

    # Names are names, whatever is in them: nothing else is asked for.
    generation = client.health("typed")["generation"]
    for name in ("typed/restart?", "reload?", "reload#", "a b", "ü", "%2e%2e", 'x"y'):
        raises(errors.PluginNotFound, lambda name=name: client.run_tool(name, "greet"))
        raises(errors.ToolNotFound, lambda name=name: client.run_tool("typed", name))
    for name in ("", ".", ".."):
        raises(ValueError, lambda name=name: client.run_tool("typed", name))
    raises(errors.ToolNotFound, lambda: client.run_tool("typed", "../restart?"))
    assert client.health("typed")["generation"] == generation
    named = client.run_tool("typed", "named", data=b"1").result
    assert named == {'a"b': b"1", "a_b": b"2", "outcome": b"3", "x\r\ny": b"4"}, named
    assert client.run_tool("typed", "argued", args={"args": b"5"}).result == 1
    assert client.run_tool("typed", "lengths", scale=numpy.int64(3), frames=[]).result == []

    # A stream that does not begin is an error, not an item.
    raises(errors.PluginNotFound, lambda: list(client.stream("nobody", "count", n=1)))
    raises(errors.InvalidArguments, lambda: list(client.stream("typed", "count", n="x")))
    raises(errors.CallTimeout, lambda: list(client.stream("typed", "nap", timeout=0.1, seconds=9)))
    error = raises(errors.ToolRaised, lambda: client.run_tool("typed", "times_out"))
    assert error.error_type == "TimeoutError"
    raises(errors.ToolRaised, lambda: list(client.stream("typed", "times_out")))
    raises(ValueError, lambda: Client(token="a\nb"))
    raises(ValueError, lambda: client.run_tool("typed", "greet", name="x", workspace="ü"))
    assert client.run_tool("typed", "greet", name="x", timeout=float("inf")).result

    names = [plugin["name"] for plugin in client.plugins()]
    assert names == ["good", "typed"], names
    assert client.health("typed")["state"] in ("INITIALIZED", "RUNNING")
    assert raises(errors.Refused, lambda: client.health("nobody")).status == 404
    assert "greet" in [tool["name"] for tool in client.tools("typed")]


def watched(client):
    seen = []

    def watch():
        for event in client.watch():
            seen.append(event)
            if event.kind == "death":
                return

    thread = threading.Thread(target=watch)
    thread.start()
    while not seen:
        # Until the watcher hears something.
        client.run_tool("typed", "die", check=False)
    thread.join(60)
    assert any(event.data["plugin"] == "typed" for event in seen), seen


async def asyncio_too(target):
    async with AsyncClient(target) as client:
        calls = (client.run_tool("typed", "greet", name=str(n)) for n in range(20))
        outcomes = await asyncio.gather(*calls)
        assert [outcome.result for outcome in outcomes] == [f"Hello, {n}!" for n in range(20)]
        echoed = await client.run_tool("typed", "echo", data=b"x" * 1_000_000)
        assert echoed.result["copy"] == b"x" * 1_000_000
        items = [item async for item in client.stream("typed", "count", n=3)]
        assert items[-1] == 2, items
        try:
            await client.run_tool("typed", "fail")
            raise AssertionError("nothing was raised")
        except errors.ToolRaised as error:
            assert error.error_type == "KeyError"
        assert len(await client.plugins()) == 2
        assert (await client.health("good"))["name"] == "good"
        assert await client.tools("typed")
        # Cancelling the task cancels the call.
        task = asyncio.create_task(client.run_tool("typed", "nap", seconds=600))
        while not (await client.health("typed"))["in_flight"]:
            await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert (await client.run_tool("typed", "greet", name="z")).result == "Hello, z!"


with Client() as client:
    blocking(client)
    watched(client)
with Client(URL) as client:
    assert client.run_tool("typed", "greet", name="Ada").result == "Hello, Ada!"
error = raises(errors.Unreachable, lambda: Client("/nowhere.sock").plugins())
assert isinstance(error, stockade.StockadeError) and "/nowhere.sock" in str(error)
asyncio.run(asyncio_too(None))
asyncio.run(asyncio_too(URL))
print("ok")
