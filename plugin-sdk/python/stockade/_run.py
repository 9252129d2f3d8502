"""What the host calls for a tool: arguments made, generators and coroutines
driven to their result."""


def runner(function, context, inputs, read):
    """What the host calls with the arguments and the context."""
    converters, empty = inputs.converters, inputs.empty
    if context is None and not converters and not empty:
        call = lambda args, ctx: function(**args)  # noqa: E731
    else:

        def call(args, ctx):
            for name in empty:
                args.setdefault(name, [])
            for name, convert in converters:
                if name in args:
                    try:
                        args[name] = convert(args[name])
                    except Exception as error:
                        raise _invalid(name, error) from error
            if context is not None:
                args[context] = ctx
            return function(**args)

    return as_it_comes(call, read)


def as_it_comes(call, read):
    """Drives generators and coroutines to their result."""
    if read.async_generator:

        def drain(args, ctx):
            from stockade import _async

            return _async.drain(call(args, ctx), ctx)

        return drain
    streams = read.generator

    def run(args, ctx):
        result = call(args, ctx)
        if hasattr(result, "__await__"):
            from stockade import _async

            result = _async.run(result, ctx)
        # What calls the generator may have collected its items.
        if streams and hasattr(result, "__next__"):
            return _drain(result, ctx)
        return result

    return run


def _invalid(name: str, error: Exception) -> Exception:
    kind = type("InvalidArguments", (ValueError,), {})
    return kind(f"{name}: {error}")


def _drain(generator, ctx):
    """Sends the items; what the generator returns is the result."""
    while True:
        try:
            item = next(generator)
        except StopIteration as end:
            return end.value
        try:
            ctx.emit(item)
        except BaseException:
            generator.close()
            raise
