"""What a plugin may ask of its host: ``ctx.kv``, ``ctx.entity(…)``, ``ctx.events``,
``ctx.metrics``, ``ctx.plugin(…)``, ``ctx.provider(…)``. Each needs a permission
(``[permissions]`` in plugin.toml).

Without it the answer is the empty value and a line in the plugin's log; with
``ctx.kv.on_denied("raise")`` it is `PermissionDenied`, with ``"silent"`` nothing is
said in the log. The operator is told in any case.
"""


class HostError(Exception):
    """The host could not do what was asked.

    :ivar kind: what it was: ``TimeoutError``, ``NotFound``, or what the other plugin's
        tool raised.
    """

    kind = "HostError"


class PermissionDenied(HostError, PermissionError):
    """The permission was not granted, or the name is another plugin's."""


class QuotaExceeded(HostError):
    """More than the operator allows: keys, bytes, or requests per second."""


_ERRORS: "dict[str, type]" = {"PermissionDenied": PermissionDenied, "QuotaExceeded": QuotaExceeded}


def error(kind: str, message: str) -> HostError:
    """The exception of an error of the host."""
    if kind not in _ERRORS:
        _ERRORS[kind] = type(kind, (HostError,), {"__doc__": None})
    made = _ERRORS[kind](message)
    made.kind = kind
    return made


class _Service:
    __slots__ = ("_host",)

    def __init__(self, host):
        self._host = host

    def on_denied(self, mode: str):
        """The same, with another answer to a refusal: raise, warn or silent."""
        return self._with(mode, "")

    def _with(self, mode: str, workspace: str):
        same = object.__new__(type(self))
        for name in _slots(type(self)):
            setattr(same, name, getattr(self, name))
        same._host = self._host.with_options(mode, workspace)
        return same


def _slots(kind: type) -> list:
    return [name for base in kind.__mro__ for name in vars(base).get("__slots__", ())]


class Kv(_Service):
    """This plugin's keys and values (``kv:read``, ``kv:write``): JSON or bytes, on the
    disk when a change returns. A key is up to 512 characters of printable ASCII."""

    __slots__ = ()

    def get(self, key: str, default=None):
        """The value, or ``default`` when there is none."""
        value = self._host.kv_get(key)
        return default if value is None else value

    def set(self, key: str, value, ttl=None) -> None:
        """Sets a value; with ``ttl`` for so many seconds."""
        self._host.kv_set(key, value, ttl)

    def delete(self, key: str) -> bool:
        """Deletes a value; False when there was none."""
        return self._host.kv_delete(key)

    def compare_and_set(self, key: str, expected, value) -> bool:
        """Sets a value (None deletes it) if it is ``expected`` now (None: if there is
        none). True when it did."""
        return self._host.kv_compare_and_set(key, expected, value)

    def list(self, prefix: str = ""):
        """Keys that begin so, in order, one by one."""
        after = ""
        while True:
            keys, more = self._host.kv_list(prefix, after)
            yield from keys
            if not more:
                return
            after = keys[-1]


class Entity(_Service):
    """The document of ``session/ID``, ``npc/ID`` or ``world/ID``. Flags and components
    that a plugin writes are kept as ``plugin:<id>:<name>``."""

    __slots__ = ("name",)

    def __init__(self, host, name: str):
        super().__init__(host)
        self.name = name

    def in_workspace(self, workspace: str) -> "Entity":
        """The same entity of another workspace."""
        return self._with("", workspace)

    def get(self, path: str = "", default=None):
        """What stands at a path (``components.core.hp``), ``""`` for all of it."""
        value = self._host.entity_get(self.name, path)
        return default if value is None else value

    def set_flag(self, key: str, value):
        """Sets a flag of this plugin."""
        return self._host.entity_change(self.name, "flag", key, value)

    def update_relationship(self, other: str, patch: dict):
        """Merges a dictionary over the relationship with somebody."""
        return self._host.entity_change(self.name, "relationship", other, patch)

    def set_component(self, name: str, value):
        """Replaces a component of this plugin."""
        return self._host.entity_change(self.name, "set_component", name, value)

    def update_component(self, name: str, patch: dict):
        """Merges a dictionary over a component of this plugin."""
        return self._host.entity_change(self.name, "update_component", name, patch)

    def delete_component(self, name: str) -> None:
        """Deletes a component of this plugin."""
        self._host.entity_change(self.name, "delete_component", name, None)


class Event:
    """One event.

    :ivar name: ``plugin:<id>:<event>``, or the server's own.
    :ivar source: ``plugin:<id>``, or ``host``.
    :ivar workspace: empty when it has none.
    :ivar time: seconds since 1970.
    :ivar sequence: ascends over all events.
    """

    __slots__ = ("name", "payload", "sequence", "source", "time", "workspace")

    def __init__(self, sequence, name, source, workspace, time_ms, payload):
        self.sequence = sequence
        self.name = name
        self.source = source
        self.workspace = workspace
        self.time = time_ms / 1000
        self.payload = payload

    def __repr__(self) -> str:
        return f"Event({self.name!r}, {self.payload!r})"


class Subscription:
    """Events as they come: iterate over it, or ask for the next."""

    __slots__ = ("_events",)

    def __init__(self, events):
        self._events = events

    def next(self, timeout: float = 60.0):
        """The next event, or None after so many seconds."""
        parts = self._events.next_within(timeout)
        return None if parts is None else Event(*parts)

    def __iter__(self):
        while not self._events.over:
            event = self.next()
            if event is not None:
                yield event

    @property
    def dropped(self) -> int:
        """How many were lost because this plugin was behind."""
        return self._events.dropped


class Events(_Service):
    """Events: emitted under this plugin's name (``event:emit``), heard from all
    (``event:subscribe``)."""

    __slots__ = ()

    def emit(self, name: str, payload=None) -> int:
        """Emits ``plugin:<own id>:<name>``; gives how many it was queued for."""
        return self._host.emit(name, payload)

    def subscribe(self, *patterns: str) -> Subscription:
        """What is emitted from now on under these names (``plugin:a:x``,
        ``plugin:a:*``, ``*``). For what a plugin always wants to hear: ``@on_event``."""
        return Subscription(self._host.subscribe(list(patterns)))


class Metrics(_Service):
    """This plugin's own metrics; no permission needed."""

    __slots__ = ()

    def counter(self, name: str, by: float = 1.0, **labels: str) -> None:
        """Adds to a counter."""
        self._host.record("counter", name, by, labels)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""
        self._host.record("gauge", name, value, labels)

    def histogram(self, name: str, value: float, **labels: str) -> None:
        """Adds an observation to a histogram."""
        self._host.record("histogram", name, value, labels)


class Plugin(_Service):
    """Another plugin (``plugin:call`` or ``plugin:call:NAME``)."""

    __slots__ = ("name",)

    def __init__(self, host, name: str):
        super().__init__(host)
        self.name = name

    def call(self, tool: str, **args):
        """The result of a tool; bytes in it stand as ``"attachment:NAME"``."""
        return self._host.call(self.name, tool, args)[0]

    def call_with_attachments(self, tool: str, **args) -> tuple:
        """The result, and bytes by name."""
        return self._host.call(self.name, tool, args)


class Services:
    """All of them: ``ctx`` of a tool has the same."""

    __slots__ = ("_host",)

    def __init__(self, host):
        self._host = host

    @property
    def kv(self) -> Kv:
        """This plugin's keys and values."""
        return Kv(self._host)

    @property
    def events(self) -> Events:
        """Events."""
        return Events(self._host)

    @property
    def metrics(self) -> Metrics:
        """This plugin's own metrics."""
        return Metrics(self._host)

    def entity(self, name: str) -> Entity:
        """The document of an entity."""
        return Entity(self._host, name)

    def plugin(self, name: str) -> Plugin:
        """Another plugin."""
        return Plugin(self._host, name)

    def provider(self, name: str, request=None, on_denied: str = ""):
        """Asks a provider of the server or of another plugin."""
        return self._host.with_options(on_denied, "").provider(name, request)

    def providers(self) -> list:
        """What servers and other plugins provide now."""
        return self._host.providers()

    def log(self, level: str, message: str, **fields: str) -> None:
        """A line in the plugin's log with fields (``log:emit``): debug, info, warning or
        error. ``print`` and ``logging`` need no permission."""
        self._host.log(level, message, fields)

    def has_permission(self, permission: str) -> bool:
        """True when the permission was granted."""
        return self._host.has_permission(permission)

    def require_permission(self, permission: str) -> None:
        """Raises `PermissionDenied` when it was not."""
        self._host.with_options("raise", "").has_permission(permission)

    def about(self) -> dict:
        """Who this plugin is: name, version, generation, permissions, capabilities."""
        return self._host.get_self()
