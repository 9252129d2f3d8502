"""The parameters of a function. Plain functions are read without `inspect`,
whose import takes as long as the rest of a plugin's start."""

# Bits of a code object.
_VARKEYWORDS = 0x08
_GENERATOR = 0x20
_ASYNC_GENERATOR = 0x200

EMPTY = object()


class Parameter:
    """One parameter that can be given by name."""

    __slots__ = ("annotation", "default", "name")

    def __init__(self, name, default, annotation):
        self.name = name
        self.default = default
        self.annotation = annotation


class Signature:
    """What a function takes and gives."""

    __slots__ = ("any_keyword", "async_generator", "generator", "parameters", "returns")

    def __init__(self, parameters, any_keyword, returns, flags):
        self.parameters = parameters
        self.any_keyword = any_keyword
        self.returns = returns
        self.generator = bool(flags & _GENERATOR)
        self.async_generator = bool(flags & _ASYNC_GENERATOR)


def signature(function) -> Signature:
    """The signature of a function, a bound method or a callable object."""
    bound = hasattr(function, "__func__")
    plain = function.__func__ if bound else function
    while hasattr(plain, "__wrapped__"):
        plain = plain.__wrapped__
    code = getattr(plain, "__code__", None)
    if code is None or code.co_posonlyargcount:
        return _inspected(function)
    # A decorator may drive what it wraps: the outermost function tells the kind.
    outer = getattr(function.__func__ if bound else function, "__code__", code)
    count = code.co_argcount
    names = code.co_varnames[: count + code.co_kwonlyargcount]
    defaults = dict(zip(names[:count][::-1], (plain.__defaults__ or ())[::-1]))
    defaults.update(plain.__kwdefaults__ or {})
    hints = _hints(plain)
    parameters = [
        Parameter(name, defaults.get(name, EMPTY), hints.get(name, EMPTY))
        for name in names[1 if bound else 0 :]
    ]
    any_keyword = bool(code.co_flags & _VARKEYWORDS)
    return Signature(parameters, any_keyword, hints.get("return", EMPTY), outer.co_flags)


def _hints(function) -> dict:
    """The annotations; one that is text is evaluated, or left out with a word."""
    hints = dict(getattr(function, "__annotations__", {}))
    for name, hint in list(hints.items()):
        if not isinstance(hint, str) and "ForwardRef" not in repr(hint):
            continue
        try:
            hints[name] = _evaluated(hint, function)
        except Exception as error:
            del hints[name]
            where = f"{function.__qualname__}: {name}: {hint}"
            print(f"<4>this hint is not understood, anything is taken: {where} ({error})")
    return hints


def _evaluated(hint, function):
    if not isinstance(hint, str):
        from typing import get_type_hints

        holder = type("Holder", (), {"__annotations__": {"hint": hint}})
        return get_type_hints(holder, function.__globals__, include_extras=True)["hint"]
    try:
        value = eval(hint, function.__globals__)
        return _evaluated(value, function) if "ForwardRef" in repr(value) else value
    except TypeError:
        # `X | Y` on 3.9.
        from typing import Union

        parts = tuple(eval(part, function.__globals__) for part in hint.split("|"))
        return Union[parts]


def _inspected(function) -> Signature:
    import inspect

    try:
        read = inspect.signature(function)
    except (TypeError, ValueError):
        return Signature([], True, EMPTY, 0)
    parameters = []
    any_keyword = False
    for parameter in read.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            any_keyword = True
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            raise TypeError(f"parameter {parameter.name!r} cannot be given by name")
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            default = EMPTY if parameter.default is parameter.empty else parameter.default
            hint = EMPTY if parameter.annotation is parameter.empty else parameter.annotation
            parameters.append(Parameter(parameter.name, default, hint))
    returns = EMPTY if read.return_annotation is read.empty else read.return_annotation
    call = getattr(type(function), "__call__", None)  # noqa: B004
    flags = getattr(getattr(call, "__code__", None), "co_flags", 0)
    return Signature(parameters, any_keyword, returns, flags)
