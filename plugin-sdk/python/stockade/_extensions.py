"""What a plugin adds to its host besides tools: conditions, effects, simulation
configuration, event handlers, providers.

Each is a function or a method with a decorator, or registered by hand in
``__init__`` or ``on_load``. After the plugin has loaded nothing more is taken.
"""

from stockade import _host
from stockade._signature import signature
from stockade._tool import EXTENSION_MARK as MARK

# (kind, name) → (kind, name, description, details, run)
_registered: dict = {}
_locked = False

# What names are made of.
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


def condition(function=None, *, name=None, requires=(), description=None):
    """Makes a function a condition, known as ``plugin:<id>:<name>``: it takes the
    context (a dictionary) and returns True or False.

    :param requires: keys that the context must have; without them it is false.
    """
    return _mark(function, "condition", name, description, {"required": _keys(requires)})


def effect(function=None, *, name=None, params=None, description=None):
    """Makes a function an effect, known as ``effect:plugin:<id>:<name>``: it takes the
    context and the parameters.

    :param params: the default parameters.
    """
    return _mark(function, "effect", name, description, {"params": params or {}})


def simulation_config(function=None, *, name=None, priority=100, description=None):
    """Makes a function a part of simulations' configuration: it takes the ``behavior``
    object and returns a dictionary. A greater priority overrides a lesser one."""
    return _mark(function, "simulation_config", name, description, {"priority": priority})


def on_event(*patterns, name=None):
    """Makes a function hear of events: it takes the `Event`.

    :param patterns: exact names, ``plugin:other:*``, or ``*``.
    """
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError('write @on_event("plugin:other:*"): it needs the events\' names')
    return _mark(None, "on_event", name, "", {"patterns": list(patterns)})


def provider(permission, *, name=None, description=None, request_schema=None, response_schema=None):
    """Makes a function answer other plugins that hold ``permission``, as
    ``plugin:<id>:<name>``: it takes the request, and ``caller`` if it wants to know who
    asks."""
    details = {
        "permission": permission,
        "request_schema": _host.to_json(request_schema) if request_schema else "",
        "response_schema": _host.to_json(response_schema) if response_schema else "",
    }
    return _mark(None, "provider", name, description, details)


def register_condition(name, function, requires=(), description=None) -> bool:
    """As `condition`, by hand. False when there is one of the name or the plugin has
    loaded: the first stays."""
    return _register("condition", name, function, description, {"required": _keys(requires)})


def register_effect(name, function, params=None, description=None) -> bool:
    """As `effect`, by hand."""
    return _register("effect", name, function, description, {"params": params or {}})


def register_simulation_config(name, function, priority=100, description=None) -> bool:
    """As `simulation_config`, by hand."""
    return _register("simulation_config", name, function, description, {"priority": priority})


def register_event_handler(name, function, *patterns) -> bool:
    """As `on_event`, by hand."""
    return _register("on_event", name, function, "", {"patterns": list(patterns)})


def _mark(function, kind, name, description, details):
    def mark(function):
        marks = getattr(function, MARK, ())
        setattr(function, MARK, (*marks, (kind, name, description, details)))
        return function

    return mark if function is None else mark(function)


def _register(kind, name, function, description, details) -> bool:
    _check(kind, name, details)
    if _locked or (kind, name) in _registered:
        return False
    if description is None:
        text = (getattr(function, "__doc__", None) or "").strip()
        description = " ".join(text.split("\n\n")[0].split())
    run = _runner(kind, function)
    _registered[kind, name] = (kind, name, description, _host.to_json(details), run)
    return True


def _check(kind, name, details) -> None:
    """What cannot be registered is said where it is written."""

    def is_fine(text):
        return isinstance(text, str) and 0 < len(text) <= 128 and not set(text) - _NAME

    def texts(values):
        return isinstance(values, list) and all(isinstance(value, str) for value in values)

    what = kind.replace("_", " ")
    if not is_fine(name):
        raise ValueError(f"{what} {name!r}: a name has 1 to 128 letters, digits, _, - and .")
    for key in ("required", "patterns"):
        if key in details and not texts(details[key]):
            raise TypeError(f"{what} {name}: {key} must be texts")
    if details.get("patterns", True) == []:
        raise TypeError(f"{what} {name}: it needs the events' names")
    if not isinstance(details.get("params", {}), dict):
        raise TypeError(f"{what} {name}: params must be a dictionary")
    priority = details.get("priority", 0)
    if not isinstance(priority, int) or abs(priority) >= 2**31:
        raise TypeError(f"{what} {name}: priority must be a whole number below 2**31")


def _keys(requires) -> list:
    """One key, or several."""
    return [requires] if isinstance(requires, str) else list(requires)


def collect(plugin, module) -> list:
    """Everything that was registered; nothing more is taken after it."""
    global _locked
    seen = []
    places = [(module, vars(module))]
    places += [(plugin, vars(kind)) for kind in reversed(type(plugin).__mro__)]
    for owner, place in places:
        for attribute, value in list(place.items()):
            function = getattr(value, "__func__", value)
            marks = getattr(function, "__dict__", {}).get(MARK, ())
            if not isinstance(marks, tuple) or function in seen:
                continue
            seen.append(function)
            for kind, name, description, details in marks:
                _register(kind, name or attribute, getattr(owner, attribute), description, details)
    _locked = True
    return list(_registered.values())


def _runner(kind, function):
    """What the host calls: with a dictionary, or the parts of events."""
    names = [parameter.name for parameter in signature(function).parameters]
    wants = {name for name in ("ctx", "caller") if name in names}

    def call(values, ctx, caller=None):
        more = {"ctx": ctx, "caller": caller}
        result = function(*values, **{name: more[name] for name in wants})
        if hasattr(result, "__await__"):
            from stockade import _async

            result = _async.run(result, ctx)
        return result

    if kind == "condition":
        return lambda args, ctx: bool(call([args["context"]], ctx))
    if kind == "effect":
        return lambda args, ctx: call([args["context"], args["params"]], ctx)
    if kind == "simulation_config":
        return lambda args, ctx: call([args["base"]], ctx)
    if kind == "provider":
        return lambda args, ctx: call([args["request"]], ctx, args["caller"])
    return lambda events, ctx: _hear(call, events, ctx)


def _hear(call, events, ctx) -> dict:
    """Hands over one event after the other; one that fails stops no other."""
    from stockade._services import Event

    failed, last = 0, None
    for parts in events:
        try:
            event = Event(*parts)
            call([event], ctx._in_workspace(event.workspace))
        except Exception as error:
            failed, last = failed + 1, error
            from stockade import _failure

            print(f"<4>event {parts[1]}: {_failure.describe(error)[2]}")
    kind = type(last).__name__ if last else ""
    return {"failed": failed, "error_type": kind, "error": str(last or "")}
