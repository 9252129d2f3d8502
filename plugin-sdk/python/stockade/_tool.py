"""The decorator that makes a function a tool."""

# Where a function keeps what the decorator was told.
MARK = "__stockade_tool__"
# The same for what extends the host (`stockade._extensions`).
EXTENSION_MARK = "__stockade_extension__"


def tool(function=None, *, name=None, title="", description=None):
    """Makes a function or a method a tool.

    :param name: the tool's name; the function's by default.
    :param title: for people.
    :param description: the docstring's first paragraph by default.

    The input schema comes from the type hints. ``async`` functions run on one
    event loop; generators are streamed results.
    """

    if isinstance(function, str):
        raise TypeError(f'write @tool(name="{function}"): the name is a keyword')

    def mark(function):
        told = {"name": name, "title": title or "", "description": description}
        setattr(function, MARK, told)
        return function

    return mark if function is None else mark(function)


class Missing(Exception):
    """Raise it in ``__init__`` or ``on_load`` when something outside is missing
    (a file, a device): the plugin becomes UNAVAILABLE, not FAILED.

    :param what: the thing.
    :param how: how to get it.
    """

    def __init__(self, what: str, how: str = "") -> None:
        super().__init__(f"{what}: {how}" if how else what)
        self.what = what
        self.how = how
