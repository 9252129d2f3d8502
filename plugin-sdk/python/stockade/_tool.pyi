"""Types of the decorator."""

from collections.abc import Callable
from typing import Any, Optional, TypeVar, overload

_Function = TypeVar("_Function", bound=Callable[..., Any])

MARK: str
EXTENSION_MARK: str

@overload
def tool(function: _Function) -> _Function: ...
@overload
def tool(
    *, name: Optional[str] = None, title: str = "", description: Optional[str] = None
) -> Callable[[_Function], _Function]: ...

class Missing(Exception):
    """Something outside is missing: the plugin becomes UNAVAILABLE."""

    what: str
    how: str
    def __init__(self, what: str, how: str = "") -> None: ...
