"""What makes a class a plugin: its tools, in every form that exists.

1. functions or methods marked with ``@tool``;
2. a dictionary ``tools`` of ``{handler, description, input_schema, output_schema}``;
3. ``analyze(image_bytes, options)`` alone;
4. otherwise every public method.
"""

import os

from stockade import _host
from stockade._inputs import Inputs
from stockade._run import as_it_comes, runner
from stockade._signature import EMPTY, signature
from stockade._tool import EXTENSION_MARK, MARK

FunctionType = type(lambda: None)

# What the hooks and the older base classes are called: no tools.
_NO_TOOLS = frozenset(
    [
        "name",
        "tools",
        "run_tool",
        "validate",
        "on_load",
        "on_unload",
        "on_reload",
        "metadata",
        "health_check",
    ]
)

# Types as manifests of the shipped form name them.
_MANIFEST_TYPES = {
    "string": {"type": "string"},
    "str": {"type": "string"},
    "text": {"type": "string"},
    "integer": {"type": "integer"},
    "int": {"type": "integer"},
    "number": {"type": "number"},
    "float": {"type": "number"},
    "boolean": {"type": "boolean"},
    "bool": {"type": "boolean"},
    "array": {"type": "array"},
    "list": {"type": "array"},
    "object": {"type": "object"},
    "dict": {"type": "object"},
}


class _Functions:
    """A module of marked functions, in the place of an instance."""

    def __init__(self, module):
        self.module = module
        for name in ("validate", "on_load", "on_unload"):
            hook = vars(module).get(name)
            # What is only imported (a `validate` of a library) is no hook.
            if isinstance(hook, FunctionType) and hook.__module__ == module.__name__:
                setattr(self, name, hook)


def missing_error() -> type:
    """The exception that says what is missing."""
    from stockade._tool import Missing

    return Missing


def instance(module, class_name: str, init):
    """The plugin's object; a module of marked functions needs no class."""
    kind = module
    for part in class_name.split("."):
        kind = getattr(kind, part, None)
    if kind is not None:
        takes_init = any(parameter.name == "init" for parameter in _constructor(kind))
        return kind(init=init) if takes_init else kind()
    if any(_mark(value) or _extends(value) for value in vars(module).values()):
        return _Functions(module)
    raise AttributeError(f"No '{class_name}' class found in module")


def _constructor(kind):
    if not isinstance(kind, type) or kind.__init__ is object.__init__:
        return []
    if not hasattr(kind.__init__, "__code__"):
        return []
    return signature(kind.__init__).parameters


def check_name(plugin) -> None:
    """A plugin with a table of tools says its name."""
    if _table(plugin):
        name = getattr(plugin, "name", None)
        if not isinstance(name, str) or not name:
            raise TypeError("Plugin must define a string attribute `name`")


def _table(plugin) -> dict:
    """The table of tools, empty when the plugin has none."""
    table = getattr(plugin, "tools", None)
    if table is None or callable(table):
        return {}
    if not isinstance(table, dict):
        raise TypeError("Plugin must define a dict attribute `tools`")
    return table


def tools(plugin, init) -> list:
    """Every tool as ``(name, title, description, input, output, streams, run, views)``."""
    marked = _marked(plugin)
    if marked:
        return [_typed(name, function, mark) for name, function, mark in marked]
    told = _manifest_tools(init.directory)
    table = _table(plugin)
    if table:
        name = plugin.name
        return [_described(plugin, name, tool, entry, told) for tool, entry in table.items()]
    methods = _methods(plugin, told)
    return [_method(name, function, told.get(name, {})) for name, function in methods]


def _marked(plugin) -> list:
    """The functions that carry the decorator's mark, in the order of the source."""
    found = []
    if isinstance(plugin, _Functions):
        places = [vars(plugin.module)]
    else:
        places = [vars(kind) for kind in reversed(type(plugin).__mro__)]
    owner = plugin.module if isinstance(plugin, _Functions) else plugin
    for place in places:
        for attribute, value in list(place.items()):
            mark = _mark(value)
            if mark is not None and attribute not in [known[0] for known in found]:
                found.append((attribute, getattr(owner, attribute), mark))
    return [(mark["name"] or attribute, function, mark) for attribute, function, mark in found]


def _mark(value):
    """What the decorator left on a function, or on what wraps it. Other objects
    are not asked: they may be lazy, and act."""
    for holder in (value, _own(value, "__func__")):
        mark = (_own(holder, "__dict__") or {}).get(MARK)
        if isinstance(mark, dict):
            return mark
    return None


def _extends(value) -> bool:
    """It is a condition, an event handler or the like, and no tool."""
    holders = (value, _own(value, "__func__"))
    marks = [(_own(holder, "__dict__") or {}).get(EXTENSION_MARK) for holder in holders]
    return any(isinstance(mark, tuple) for mark in marks)


def _own(value, name: str):
    try:
        return object.__getattribute__(value, name)
    except Exception:
        return None


# ── 1: marked functions ──────────────────────────────────────────────────────


def _typed(name: str, function, mark: dict) -> tuple:
    from stockade import _schema

    read = signature(function)
    description, texts = _docstring(function)
    inputs = Inputs(read, texts)
    context = None
    for parameter in read.parameters:
        if _is_context(parameter):
            context = parameter.name
            continue
        try:
            inputs.add(parameter, _schema.read(parameter.annotation, inputs.definitions))
        except _schema.Unsupported as error:
            raise TypeError(f"Tool '{name}': parameter '{parameter.name}': {error}") from None
    schema = _text(inputs.schema(), name, "input")
    run = runner(function, context, inputs, read)
    told = mark["description"] or description
    output = _output(read, _schema)
    return (name, mark["title"], told, schema, output, _streams(read), run, inputs.views)


def _streams(read) -> bool:
    return read.generator or read.async_generator


def _is_context(parameter) -> bool:
    hint = parameter.annotation
    hints = (hint, *getattr(hint, "__args__", ()))
    return _host.Context in hints or (parameter.name == "ctx" and hint is EMPTY)


def _output(read, schemas) -> str:
    """The schema of the result, when the return type says one."""
    if read.returns in (EMPTY, None) or read.generator or read.async_generator:
        return ""
    definitions: dict = {}
    try:
        schema = dict(schemas.read(read.returns, definitions, result=True).schema)
    except schemas.Unsupported:
        return ""
    if definitions:
        schema["$defs"] = definitions
    # Bytes stand as the name of their attachment.
    text = _host.to_json(schema)
    return text.replace('"format":"binary"', '"contentEncoding":"attachment"')


# ── 2: a table of tools ──────────────────────────────────────────────────────


def _described(plugin, plugin_name: str, tool: str, entry, told: dict) -> tuple:
    where = f"Tool '{tool}' in plugin '{plugin_name}'"
    if not isinstance(entry, dict):
        raise TypeError(f"{where} must define a callable 'handler'")
    handler = entry.get("handler")
    if isinstance(handler, str):
        handler = getattr(plugin, handler, None)
        if not callable(handler):
            raise TypeError(f"{where} references non-existent method '{entry['handler']}'")
    if not callable(handler):
        raise TypeError(f"{where} must define a callable 'handler'")
    if not isinstance(entry.get("description"), str):
        raise TypeError(f"{where} must define a string 'description'")
    schemas = []
    for key in ("input_schema", "output_schema"):
        if not isinstance(entry.get(key), dict):
            raise TypeError(f"{where} must define a dict '{key}'")
        schemas.append(_text(_full_schema(entry[key]), tool, key))
    title = entry.get("title") or told.get(tool, {}).get("title") or ""
    read = signature(handler)
    if callable(getattr(plugin, "run_tool", None)):
        call = lambda args, ctx: plugin.run_tool(tool, args)  # noqa: E731
    else:
        call = lambda args, ctx: handler(**args)  # noqa: E731
    run = as_it_comes(call, read)
    return (tool, str(title), entry["description"], *schemas, _streams(read), run, [])


def _full_schema(schema: dict) -> dict:
    """A JSON Schema, of one or of a bare map of properties."""
    keywords = {"type", "properties", "$ref", "anyOf", "oneOf", "allOf", "enum", "$schema"}
    if not schema or (keywords & schema.keys() and not _bare(schema)):
        return schema
    properties, required = {}, []
    for name, value in schema.items():
        if isinstance(value, str):
            properties[name], needed = _manifest_type(value)
            if needed:
                required.append(name)
        else:
            properties[name] = value
    full = {"type": "object", "properties": properties}
    if required:
        full["required"] = required
    return full


def _bare(schema: dict) -> bool:
    """Every value is itself a schema: ``type`` is a property's name here."""
    return all(isinstance(value, dict) and "type" in value for value in schema.values())


def _manifest_type(text: str) -> "tuple[dict, bool]":
    """``"string?"`` is an optional text; an unknown word allows anything."""
    optional = text.endswith("?")
    word = text.rstrip("?").strip().lower()
    if word in ("bytes", "binary"):
        return {"type": "string", "format": "binary"}, not optional
    schema = _MANIFEST_TYPES.get(word, {})
    if optional and schema:
        schema = {"anyOf": [schema, {"type": "null"}]}
    return schema, not optional


# ── 3 and 4: methods ─────────────────────────────────────────────────────────


def _methods(plugin, told: dict) -> list:
    """The methods that are tools: those that the manifest names, ``analyze``
    alone when it is of the older form, else every public one."""
    public = {}
    for kind in reversed(type(plugin).__mro__):
        if kind is object or kind.__module__.startswith("stockade."):
            continue
        for name, value in vars(kind).items():
            if name.startswith("_") or name in _NO_TOOLS or isinstance(value, (type, property)):
                continue
            if _extends(value):
                continue
            if isinstance(value, (FunctionType, staticmethod, classmethod)):
                public[name] = getattr(plugin, name)
            elif callable(value) and not hasattr(type(value), "__get__"):
                public[name] = value
    analyze = public.get("analyze")
    if analyze is not None and _takes_image(analyze):
        return [("analyze", analyze)]
    public = {name: method for name, method in public.items() if _by_name(name, method)}
    listed = {name: public[name] for name in told if name in public}
    return list((listed or public).items())


def _by_name(name: str, method) -> bool:
    """Can its arguments be given by name? If not, it is no tool."""
    try:
        signature(method)
    except TypeError as error:
        print(f"<4>{name} is no tool: {error}")
        return False
    return True


def _takes_image(function) -> bool:
    return any(parameter.name == "image_bytes" for parameter in signature(function).parameters)


def _method(name: str, function, told: dict) -> tuple:
    from stockade import _schema

    read = signature(function)
    description, texts = _docstring(function)
    older = name == "analyze" and _takes_image(function)
    described = told.get("inputs") if isinstance(told.get("inputs"), dict) else {}
    inputs = Inputs(read, texts)
    for parameter in read.parameters:
        hint = parameter.annotation
        if hint is EMPTY and parameter.name == "image_bytes":
            hint = bytes
        if hint is EMPTY and isinstance(described.get(parameter.name), str):
            found = _schema.Hint(_manifest_type(described[parameter.name])[0])
        else:
            try:
                found = _schema.read(hint, inputs.definitions)
            except _schema.Unsupported:
                found = _schema.Hint({})
        inputs.add(parameter, found, left_out=older and parameter.name == "options")
    run = runner(function, None, inputs, read)
    if older:
        plain = run
        defaults = {"options": {}} if any(p.name == "options" for p in read.parameters) else {}
        run = lambda args, ctx: plain({**defaults, **args}, ctx)  # noqa: E731
    title, said = told.get("title") or "", told.get("description") or description
    schema = _text(inputs.schema(), name, "input")
    return (name, str(title), str(said), schema, "", _streams(read), run, inputs.views)


# ── what is around ───────────────────────────────────────────────────────────


def _manifest_tools(directory: str) -> dict:
    """The tools that a manifest.json describes, by id."""
    try:
        with open(os.path.join(directory, "manifest.json"), encoding="utf-8") as file:
            manifest = _host.from_json(file.read())
    except (OSError, ValueError):
        return {}
    tools = manifest.get("tools") if isinstance(manifest, dict) else None
    if isinstance(tools, dict):
        return {name: tool for name, tool in tools.items() if isinstance(tool, dict)}
    if not isinstance(tools, list):
        return {}
    named = ((tool.get("id") or tool.get("name"), tool) for tool in tools if isinstance(tool, dict))
    return {name: tool for name, tool in named if isinstance(name, str)}


def _text(schema: dict, tool: str, which: str) -> str:
    try:
        return _host.to_json(schema)
    except (TypeError, ValueError) as error:
        text = f"Tool '{tool}': the {which} is not JSON-serialisable: {error}"
        raise TypeError(text) from None


def _docstring(function) -> "tuple[str, dict]":
    """The first paragraph, and the texts of the section ``Args:`` (or of
    ``:param name:``)."""
    raw = getattr(function, "__doc__", None) or ""
    lines = [line.strip() for line in raw.strip().splitlines()]
    first = []
    for line in lines:
        if not line:
            break
        first.append(line)
    texts: dict = {}
    section = False
    for line in lines:
        if line.startswith(":param "):
            name, _, text = line[len(":param ") :].partition(":")
            texts[name.split()[-1] if name.split() else ""] = text.strip()
        elif line.lower() in ("args:", "arguments:", "parameters:"):
            section = True
        elif section and line.endswith(":") and " " not in line:
            section = False
        elif section and ":" in line:
            name, _, text = line.partition(":")
            texts[name.split("(")[0].strip()] = text.strip()
    return " ".join(first), texts
