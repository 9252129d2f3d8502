"""Write a Stockade plugin in Python, or call plugins from a Python server.

This is a whole plugin. It runs in a process of its own; if it raises, one call
fails; if it crashes, it is restarted and the caller is told why::

    from stockade import tool

    @tool
    def greet(name: str) -> str:
        '''Says hello to somebody.'''
        return f"Hello, {name}!"

Beside it goes a ``plugin.toml``::

    name = "hello"
    [run]
    python = "plugin"

``stockade new --python hello`` makes both, with a test. Then
``stockade call hello greet --arg name=Ada`` prints ``"Hello, Ada!"``.

And this is a client::

    from stockade import Client

    with Client() as client:
        print(client.run_tool("hello", "greet", name="Ada").result)

What a tool gets and gives:

- **Arguments** are typed parameters; their JSON Schema comes from the type
  hints, and callers are refused before the plugin sees a wrong argument.
  Dataclasses, enums, ``TypedDict`` and pydantic models are fine.
- **Binary arguments** are parameters of type ``bytes``, ``memoryview`` (not
  copied) or ``numpy.ndarray`` (not copied, read-only).
- **Results** are anything JSON-serialisable, dataclasses, pydantic models,
  numpy scalars; bytes, `Blob` and numpy arrays become attachments.
- **Streams**: a generator sends its items one by one.
- **The context** (a parameter named ``ctx`` or annotated `Context`) has
  ``progress``, ``cancelled``, ``check``, ``deadline``, ``remaining``.
- **The host**: ``ctx.kv``, ``ctx.events``, ``ctx.entity("npc/7")``, ``ctx.metrics``,
  ``ctx.plugin("other")``, ``ctx.provider("world.get")``, each behind a permission of
  ``[permissions]``; see `stockade._services`::

    @tool
    def visit(ctx: Context) -> int:
        visits = ctx.kv.get("visits", 0) + 1
        ctx.kv.set("visits", visits)
        ctx.events.emit("visited", {"visits": visits})
        return visits

- **Extensions**: ``@condition``, ``@effect``, ``@simulation_config``, ``@on_event`` and
  ``@provider``; see `stockade._extensions`.
- **Errors** are exceptions: class and message reach the caller, the traceback
  the plugin's log.
"""

import os as _os
import sys as _sys

TYPE_CHECKING = False  # as type checkers read it; `typing` itself is slow to import

__version__ = "0.1.0"

# For `from stockade import *` in a plugin; the client needs httpx and is imported by
# name.
__all__ = [
    "Blob",
    "Cancelled",
    "Context",
    "Event",
    "HostError",
    "Init",
    "Missing",
    "PermissionDenied",
    "QuotaExceeded",
    "Services",
    "condition",
    "effect",
    "on_event",
    "provider",
    "register_condition",
    "register_effect",
    "register_event_handler",
    "register_simulation_config",
    "simulation_config",
    "tool",
]

# Stubs that protoc generates of stockade/v1/*.proto are a package of the same
# name somewhere else on the path: they are found beside us.
__path__ += [
    folder
    for folder in (_os.path.join(entry, "stockade") for entry in _sys.path)
    if folder not in __path__ and _os.path.isdir(_os.path.join(folder, "v1"))
]

# What is exported and where it lives: a plugin's start pays for what it uses.
_HOMES = {
    "AsyncClient": "stockade.client",
    "Blob": "stockade._host",
    "CallFailed": "stockade.errors",
    "Cancelled": "stockade._host",
    "Client": "stockade.client",
    "Context": "stockade._host",
    "Event": "stockade._services",
    "HostError": "stockade._services",
    "Init": "stockade._host",
    "Missing": "stockade._tool",
    "Outcome": "stockade.client",
    "PermissionDenied": "stockade._services",
    "QuotaExceeded": "stockade._services",
    "Services": "stockade._services",
    "StockadeError": "stockade.errors",
    "condition": "stockade._extensions",
    "effect": "stockade._extensions",
    "on_event": "stockade._extensions",
    "provider": "stockade._extensions",
    "register_condition": "stockade._extensions",
    "register_effect": "stockade._extensions",
    "register_event_handler": "stockade._extensions",
    "register_simulation_config": "stockade._extensions",
    "simulation_config": "stockade._extensions",
    "tool": "stockade._tool",
}

if TYPE_CHECKING:
    from stockade._extensions import (
        condition,
        effect,
        on_event,
        provider,
        register_condition,
        register_effect,
        register_event_handler,
        register_simulation_config,
        simulation_config,
    )
    from stockade._host import Blob, Cancelled, Context, Init
    from stockade._services import Event, HostError, PermissionDenied, QuotaExceeded, Services
    from stockade._tool import Missing, tool
    from stockade.client import AsyncClient as AsyncClient
    from stockade.client import Client as Client
    from stockade.client import Outcome as Outcome
    from stockade.errors import CallFailed as CallFailed
    from stockade.errors import StockadeError as StockadeError


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'stockade' has no attribute {name!r}")
    module = __import__(home, fromlist=[name])
    value = getattr(module, name)
    globals()[name] = value
    return value
