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


def read(hint, definitions: dict) -> Hint:
    """Reads a type hint; models add to ``definitions``.

    :raises Unsupported: the type has no JSON form.
    """
    if hint is EMPTY:
        return Hint({})
    if isinstance(hint, type) and hint in _PLAIN:
        convert = {tuple: tuple, set: set}.get(hint)
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
    if typing is not None and (origin is typing.Union or _is_union(hint)):
        return _union(hint.__args__, definitions)
    if typing is not None and origin is getattr(typing, "Literal", None):
        return Hint({"enum": list(hint.__args__)})
    if origin is not None:
        return _generic(hint, origin, getattr(hint, "__args__", ()), definitions)
    if isinstance(hint, type):
        return _class(hint, definitions)
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
    converters = [hint.convert for hint in rest]
    if any(converters):
        raise Unsupported("a union of types that JSON cannot tell apart")
    return Hint({"anyOf": [hint.schema for hint in hints]})


def _unless_none(convert):
    return lambda value: None if value is None else convert(value)


def _generic(hint, origin, arguments, definitions) -> Hint:
    name = getattr(origin, "__name__", "")
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
    if origin is dict or name in ("Mapping", "MutableMapping"):
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


def _class(kind, definitions) -> Hint:
    if hasattr(kind, "model_json_schema"):
        schema = kind.model_json_schema(ref_template="#/$defs/{model}")
        return Hint(_with_definitions(schema, definitions), kind.model_validate)
    if hasattr(kind, "__fields__") and hasattr(kind, "parse_obj"):
        schema = kind.schema(ref_template="#/$defs/{model}")
        return Hint(_with_definitions(schema, definitions), kind.parse_obj)
    if hasattr(kind, "__dataclass_fields__"):
        return _dataclass(kind, definitions)
    if hasattr(kind, "__members__") and hasattr(kind, "_member_map_"):
        return Hint({"enum": [member.value for member in kind]}, kind)
    if issubclass(kind, dict) and hasattr(kind, "__total__"):
        return _typed_dict(kind, definitions)
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


def _dataclass(kind, definitions) -> Hint:
    from typing import get_type_hints

    hints = get_type_hints(kind)
    properties, required, converters = {}, [], {}
    for name, field in kind.__dataclass_fields__.items():
        if not field.init:
            continue
        hint = read(hints.get(name, EMPTY), definitions)
        properties[name] = hint.schema
        if hint.convert is not None:
            converters[name] = hint.convert
        missing = type(field.default).__name__ == "_MISSING_TYPE"
        if missing and type(field.default_factory).__name__ == "_MISSING_TYPE":
            required.append(name)

    def make(values):
        given = {
            key: converters[key](value) if key in converters else value
            for key, value in values.items()
        }
        return kind(**given)

    return Hint(_object(properties, required), make)


def _typed_dict(kind, definitions) -> Hint:
    from typing import get_type_hints

    hints = {name: read(hint, definitions) for name, hint in get_type_hints(kind).items()}
    properties = {name: hint.schema for name, hint in hints.items()}
    if any(hint.convert for hint in hints.values()):
        raise Unsupported(f"{_shown(kind)} has fields that are not plain JSON; use a dataclass")
    return Hint(_object(properties, sorted(kind.__required_keys__)))


def _object(properties: dict, required: list) -> dict:
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        schema["required"] = required
    return schema
