"""Type hints as JSON Schema, and JSON as what the type hints say."""

import sys

from stockade._signature import EMPTY

BINARY = {"type": "string", "format": "binary"}

_PLAIN = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    set: {"type": "array", "uniqueItems": True},
    frozenset: {"type": "array", "uniqueItems": True},
    dict: {"type": "object"},
    object: {},
}


class Unsupported(TypeError):
    """A type that has no JSON form."""


class Hint:
    """One type hint, read: its schema and how a value is made from JSON.

    :ivar schema: JSON Schema, as a dictionary.
    :ivar convert: makes the value from JSON; None = it is the JSON.
    :ivar view: it wants an attachment as a memory view.
    """

    __slots__ = ("convert", "schema", "view")

    def __init__(self, schema, convert=None, view=False):
        self.schema = schema
        self.convert = convert
        self.view = view


def read(hint, definitions: dict, result: bool = False) -> Hint:
    """Reads a type hint; models add to ``definitions``.

    :param result: of what a tool returns, not of what it takes.
    :raises Unsupported: the type has no JSON form.
    """
    if hint is EMPTY or type(hint).__name__ == "TypeVar":
        return Hint({})
    while hasattr(hint, "__supertype__"):
        hint = hint.__supertype__
    if hint is int:
        return Hint(_PLAIN[int], None if result else _whole)
    if isinstance(hint, type) and hint in _PLAIN:
        convert = {tuple: tuple, set: set, frozenset: frozenset}.get(hint)
        return Hint(_PLAIN[hint], convert)
    if hint is None:
        return Hint(_PLAIN[type(None)])
    if hint is bytes:
        return Hint(BINARY)
    if hint is bytearray:
        return Hint(BINARY, bytearray, view=True)
    if hint is memoryview:
        return Hint(BINARY, view=True)
    typing = sys.modules.get("typing")
    if typing is not None and hint is typing.Any:
        return Hint({})
    if _is_array(hint):
        return Hint(BINARY, _array, view=True)
    origin = getattr(hint, "__origin__", None)
    if hasattr(hint, "__metadata__"):
        return _annotated(hint, definitions)
    if _is_union(hint) or (typing is not None and origin is typing.Union):
        return _union(hint.__args__, definitions)
    if typing is not None and origin is getattr(typing, "Literal", None):
        return Hint({"enum": list(hint.__args__)})
    if origin is not None:
        return _generic(hint, origin, getattr(hint, "__args__", ()), definitions)
    if isinstance(hint, type):
        return _class(hint, definitions, result)
    raise Unsupported(f"{_shown(hint)} has no JSON form")


def _shown(hint) -> str:
    return getattr(hint, "__qualname__", None) or repr(hint)


def _is_union(hint) -> bool:
    return type(hint).__name__ == "UnionType"


def _is_array(hint) -> bool:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return False
    origin = getattr(hint, "__origin__", hint)
    return origin is numpy.ndarray


def _array(value):
    from stockade import _numpy

    return _numpy.array(value if isinstance(value, memoryview) else memoryview(value))


def _annotated(hint, definitions) -> Hint:
    """``Annotated[T, "what it is"]``; pydantic's ``Field`` gives its schema."""
    read_hint = read(hint.__origin__, definitions)
    schema = dict(read_hint.schema)
    for extra in hint.__metadata__:
        if isinstance(extra, str):
            schema["description"] = extra
        elif type(extra).__name__ == "FieldInfo":
            from pydantic import TypeAdapter

            schema = _with_definitions(TypeAdapter(hint).json_schema(), definitions)
    return Hint(schema, read_hint.convert, read_hint.view)


def _union(members, definitions) -> Hint:
    hints = [read(member, definitions) for member in members]
    null = any(hint.schema == _PLAIN[type(None)] for hint in hints)
    rest = [hint for hint in hints if hint.schema != _PLAIN[type(None)]]
    if len(rest) == 1:
        (only,) = rest
        convert = only.convert
        if convert is not None:
            convert = _unless_none(convert)
        schema = {"anyOf": [only.schema, {"type": "null"}]} if null else only.schema
        return Hint(schema, convert, only.view)
    schema = {"anyOf": [hint.schema for hint in hints]}
    if not any(hint.convert for hint in rest):
        return Hint(schema)

    def pick(value):
        for hint in rest:
            if _fits(hint.schema, value):
                try:
                    return value if hint.convert is None else hint.convert(value)
                except (TypeError, ValueError):
                    # Another member may be meant.
                    continue
        return value

    return Hint(schema, pick, any(hint.view for hint in rest))


# What a value of each JSON type is in Python.
_KINDS = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}


def _fits(schema: dict, value) -> bool:
    """Could the value be meant by this member of a union?"""
    if schema.get("format") == "binary":
        return isinstance(value, (bytes, memoryview))
    if "enum" in schema:
        return value in schema["enum"]
    if "$ref" in schema:
        return isinstance(value, dict)
    kinds = schema.get("type")
    if kinds is None:
        return True
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if isinstance(value, bool):
        return "boolean" in kinds
    return any(isinstance(value, _KINDS.get(kind, ())) for kind in kinds)


def _whole(value):
    """5.0 is a whole number for JSON Schema; Python wants it as one."""
    return int(value) if type(value) is float else value


def _unless_none(convert):
    return lambda value: None if value is None else convert(value)


def _generic(hint, origin, arguments, definitions) -> Hint:
    name = getattr(origin, "__name__", "")
    if name == "Callable":
        raise Unsupported(f"{_shown(hint)} has no JSON form")
    if not arguments or (origin is tuple and arguments == ((),)):
        plain = {"tuple": tuple, "dict": dict, "set": set, "frozenset": frozenset}.get(name, list)
        if name in ("Mapping", "MutableMapping", "OrderedDict", "defaultdict", "Counter"):
            plain = dict
        return read(plain, definitions)
    if origin in (list, set, frozenset) or name in ("Sequence", "Iterable", "Collection"):
        item = read(arguments[0], definitions) if arguments else Hint({})
        schema = {"type": "array", "items": item.schema}
        make = origin if origin in (set, frozenset) else None
        if item.schema is BINARY:
            return Hint(schema, _attachments(item.convert), item.view)
        return Hint(schema, _each(item.convert, make), item.view)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            item = read(arguments[0], definitions)
            return Hint({"type": "array", "items": item.schema}, _each(item.convert, tuple))
        items = [read(argument, definitions) for argument in arguments]
        schema = {
            "type": "array",
            "prefixItems": [item.schema for item in items],
            "minItems": len(items),
            "maxItems": len(items),
        }
        converters = [item.convert for item in items]
        return Hint(schema, _tuple(converters))
    if origin is dict or name in ("Mapping", "MutableMapping", "OrderedDict", "defaultdict"):
        value = read(arguments[1], definitions) if len(arguments) == 2 else Hint({})
        schema = {"type": "object", "additionalProperties": value.schema}
        return Hint(schema, _values(value.convert))
    raise Unsupported(f"{_shown(hint)} has no JSON form")


def _each(convert, make):
    if convert is None and make is None:
        return None

    def run(values):
        values = values if convert is None else [convert(value) for value in values]
        return values if make is None else make(values)

    return run


def _attachments(convert):
    def run(values):
        # One attachment of the name comes alone.
        values = values if isinstance(values, list) else [values]
        return values if convert is None else [convert(value) for value in values]

    return run


def _tuple(converters):
    def run(values):
        pairs = zip(converters, values)
        return tuple(value if convert is None else convert(value) for convert, value in pairs)

    return run


def _values(convert):
    if convert is None:
        return None
    return lambda values: {key: convert(value) for key, value in values.items()}


def _class(kind, definitions, result) -> Hint:
    if hasattr(kind, "model_json_schema"):
        # What comes is named by alias; what goes is dumped by the fields' names.
        form = {"mode": "serialization", "by_alias": False} if result else {}
        schema = kind.model_json_schema(ref_template="#/$defs/{model}", **form)
        return Hint(_with_definitions(schema, definitions), kind.model_validate)
    if hasattr(kind, "__fields__") and hasattr(kind, "parse_obj"):
        schema = kind.schema(ref_template="#/$defs/{model}")
        return Hint(_with_definitions(schema, definitions), kind.parse_obj)
    if hasattr(kind, "__dataclass_fields__"):
        return _dataclass(kind, definitions, result)
    if hasattr(kind, "__members__") and hasattr(kind, "_member_map_"):
        return Hint({"enum": [member.value for member in kind]}, kind)
    if issubclass(kind, dict):
        if hasattr(kind, "__total__"):
            return _typed_dict(kind, definitions, result)
        return Hint({"type": "object"}, kind if kind.__name__ == "OrderedDict" else None)
    if issubclass(kind, tuple) and hasattr(kind, "_make"):
        count = len(kind._fields)
        return Hint({"type": "array", "minItems": count, "maxItems": count}, kind._make)
    if kind.__module__ == "collections.abc":
        return _generic(kind, kind, (), definitions)
    if kind.__name__ == "UUID":
        return Hint({"type": "string", "format": "uuid"}, kind)
    if kind.__name__ == "Decimal":
        return Hint({"type": ["string", "number"]}, lambda value: kind(str(value)))
    if kind.__module__ == "datetime" and kind.__name__ == "timedelta":
        return Hint({"type": "number"}, lambda seconds: kind(seconds=seconds))
    if kind.__module__ == "datetime":
        form = {"datetime": "date-time", "date": "date", "time": "time"}.get(kind.__name__)
        if form is not None:
            return Hint({"type": "string", "format": form}, kind.fromisoformat)
    if kind.__module__.startswith("pathlib"):
        return Hint({"type": "string"}, kind)
    raise Unsupported(f"{_shown(kind)} has no JSON form")


def _with_definitions(schema: dict, definitions: dict) -> dict:
    """Nested models go where every reference finds them."""
    schema = dict(schema)
    for key in ("$defs", "definitions"):
        definitions.update(schema.pop(key, {}))
    return schema


# Dataclasses that are being read, and whether they were met inside themselves.
_reading: dict = {}


def _dataclass(kind, definitions, result) -> Hint:
    name = _NAMES.setdefault(kind.__name__, kind) is kind and kind.__name__
    name = name or f"{kind.__module__}.{kind.__qualname__}"
    reference = {"$ref": f"#/$defs/{name}"}
    if kind in _reading:
        _reading[kind] = True
        return Hint(reference, lambda values: _MADE[kind](values))
    _reading[kind] = False
    try:
        hint = _fields(kind, definitions, result)
    finally:
        recursive = _reading.pop(kind)
    if not recursive:
        return hint
    _MADE[kind] = hint.convert
    definitions[name] = hint.schema
    return Hint(reference, hint.convert)


# How a dataclass that contains itself is made, and whose its short name is.
_MADE: dict = {}
_NAMES: dict = {}


def _fields(kind, definitions, result) -> Hint:
    from typing import get_type_hints

    hints = get_type_hints(kind, include_extras=True)
    properties, required, converters = {}, [], {}
    for name, field in kind.__dataclass_fields__.items():
        kept = field._field_type.name == "_FIELD"
        if not kept or not (field.init or result):
            continue
        hint = read(hints.get(name, EMPTY), definitions, result)
        properties[name] = hint.schema
        if hint.convert is not None:
            converters[name] = hint.convert
        missing = type(field.default).__name__ == "_MISSING_TYPE"
        if result or (missing and type(field.default_factory).__name__ == "_MISSING_TYPE"):
            required.append(name)

    def make(values):
        given = {
            key: converters[key](value) if key in converters else value
            for key, value in values.items()
        }
        return kind(**given)

    return Hint(_object(properties, required), make)


def _typed_dict(kind, definitions, result) -> Hint:
    from typing import get_type_hints

    told = get_type_hints(kind, include_extras=True)
    hints = {name: read(hint, definitions, result) for name, hint in told.items()}
    properties = {name: hint.schema for name, hint in hints.items()}
    converters = {name: hint.convert for name, hint in hints.items() if hint.convert is not None}

    def make(values):
        return {
            key: converters[key](value) if key in converters else value
            for key, value in values.items()
        }

    schema = _object(properties, sorted(kind.__required_keys__))
    return Hint(schema, make if converters else None)


def _object(properties: dict, required: list) -> dict:
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        schema["required"] = required
    return schema
