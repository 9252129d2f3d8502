"""``app.models`` for plugins written for the original server."""

import copy

from stockade import _host


class _Model:
    """Named fields with defaults; others are kept as they come."""

    _defaults: dict = {}  # noqa: RUF012

    def __init__(self, **fields):
        for name, default in self._defaults.items():
            setattr(self, name, default() if callable(default) else default)
        # A subclass declares its fields in its body, as with pydantic.
        for kind in reversed(type(self).__mro__):
            for name in vars(kind).get("__annotations__", {}):
                if not name.startswith("_") and name in vars(kind):
                    setattr(self, name, copy.deepcopy(vars(kind)[name]))
        for name, value in fields.items():
            setattr(self, name, value)

    def model_dump(self, **_):
        """The fields as a dictionary."""
        return dict(vars(self))

    dict = model_dump

    def model_dump_json(self, **_):
        """The fields as JSON text."""
        return _host.to_json(self.model_dump())

    json = model_dump_json

    def __repr__(self):
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({fields})"

    def __eq__(self, other):
        return type(self) is type(other) and vars(self) == vars(other)


class AnalysisResult(_Model):
    """What ``analyze`` returns."""

    _defaults = {  # noqa: RUF012
        "text": "",
        "blocks": list,
        "confidence": 0.0,
        "language": None,
        "error": None,
    }


class PluginMetadata(_Model):
    """What ``metadata`` returns."""

    _defaults = {  # noqa: RUF012
        "name": "",
        "version": "",
        "description": "",
        "inputs": list,
        "outputs": list,
        "permissions": list,
        "config_schema": None,
    }
