"""The modules that plugins for the original server import: ``app.plugins.base``
and ``app.models``. Found last, so that a plugin's own ``app`` wins."""

import sys
from importlib.machinery import ModuleSpec

_PACKAGES = ("app", "app.plugins")
_MODULES = {"app.plugins.base": "stockade._compat_base", "app.models": "stockade._compat_models"}


class Finder:
    """A meta path finder and loader for exactly these names."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """The spec of one of the names."""
        if name not in _PACKAGES and name not in _MODULES:
            return None
        return ModuleSpec(name, cls, is_package=name in _PACKAGES)

    @staticmethod
    def create_module(spec):
        """An alias of our own module, or an empty package."""
        home = _MODULES.get(spec.name)
        if home is None:
            return None
        __import__(home)
        return type(sys)(spec.name)

    @staticmethod
    def exec_module(module):
        """Fills the alias."""
        home = _MODULES.get(module.__spec__.name)
        if home is not None:
            public = {k: v for k, v in vars(sys.modules[home]).items() if not k.startswith("__")}
            vars(module).update(public)
