"""What a value of a result stands for, when it is not JSON itself."""

import os

from stockade import _host


def plain(value, place: str):
    """Something that is JSON, or bytes, for ``value``.

    :raises TypeError: there is nothing; ``place`` says where.
    """
    for base in (bool, int, float, str):
        if isinstance(value, base):
            # An enum's member stands for its value, a number for itself.
            return base(getattr(value, "_value_", value))
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _host.Blob(value)
    kind = type(value)
    if hasattr(kind, "model_dump"):
        return value.model_dump()
    if hasattr(kind, "__fields__") and hasattr(kind, "dict"):
        return value.dict()
    if hasattr(kind, "__dataclass_fields__"):
        fields = kind.__dataclass_fields__.items()
        kept = [name for name, field in fields if field._field_type.name == "_FIELD"]
        return {name: getattr(value, name) for name in kept}
    if hasattr(value, "_value_"):
        return value._value_
    if hasattr(kind, "__array__"):
        from stockade import _numpy

        return _numpy.plain(value)
    if hasattr(kind, "isoformat"):
        return value.isoformat()
    if hasattr(kind, "__fspath__"):
        return os.fspath(value)
    if kind.__name__ in ("UUID", "Decimal"):
        return str(value)
    if hasattr(kind, "total_seconds"):
        return value.total_seconds()
    hint = ""
    if isinstance(value, (set, frozenset)):
        hint = "; return a list"
    elif hasattr(kind, "__next__"):
        hint = "; let the tool itself be the generator, or return a list"
    elif hasattr(kind, "__await__"):
        hint = "; make the tool an async function"
    raise TypeError(f"{place} is of type {kind.__name__}, which is neither JSON nor bytes{hint}")
