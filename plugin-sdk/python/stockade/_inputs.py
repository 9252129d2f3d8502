"""The parameters of a tool: their schema, and what makes values of JSON."""

from stockade import _host
from stockade._signature import EMPTY


class Inputs:
    """Gathers the parameters of one tool.

    :ivar converters: ``(name, convert)`` of those that are not plain JSON.
    :ivar empty: names of lists of attachments: none given is an empty list.
    :ivar views: names of those that come as memory views.
    :ivar definitions: models that the schema refers to.
    """

    def __init__(self, read, texts: dict):
        self._read = read
        self._texts = texts
        self._properties: dict = {}
        self._required: list = []
        self.converters: list = []
        self.empty: list = []
        self.views: list = []
        self.definitions: dict = {}

    def add(self, parameter, hint, left_out: bool = False) -> None:
        """One parameter; ``left_out``: a call may do without it."""
        name, default = parameter.name, parameter.default
        schema = dict(hint.schema)
        if left_out:
            schema = _with_default(schema, None)
        elif default is EMPTY:
            self._required.append(name)
            if schema.get("items", {}).get("format") == "binary":
                self.empty.append(name)
        else:
            schema = _with_default(schema, default)
        if name in self._texts:
            schema.setdefault("description", self._texts[name])
        self._properties[name] = schema
        if hint.convert is not None:
            self.converters.append((name, _optional(hint.convert, default)))
        if hint.view:
            self.views.append(name)

    def schema(self) -> dict:
        """The schema of all."""
        schema: dict = {"type": "object", "properties": self._properties}
        if self._required:
            schema["required"] = self._required
        if not self._read.any_keyword:
            schema["additionalProperties"] = False
        if self.definitions:
            schema["$defs"] = self.definitions
        return schema


def _with_default(schema: dict, default) -> dict:
    """The schema with its default; a default of None allows null."""
    if default is None:
        nullable = not schema or any(one.get("type") == "null" for one in schema.get("anyOf", []))
        if not nullable and "default" not in schema:
            described = {key: schema.pop(key) for key in ("description",) if key in schema}
            schema = {"anyOf": [schema, {"type": "null"}], **described}
        return {**schema, "default": None}
    if type(default) not in (str, int, float, bool, list, dict):
        return schema
    try:
        _host.to_json(default)
    except (TypeError, ValueError):
        # Infinity is a default, but no JSON.
        return schema
    return {**schema, "default": default}


def _optional(convert, default):
    """None is passed on where it is the default."""
    if default is not None:
        return convert
    return lambda value: None if value is None else convert(value)
