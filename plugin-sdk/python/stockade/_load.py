"""From a directory to tools: packages, import, instance, hooks."""

import os
import sys
from importlib import import_module

from stockade import _contract

# The plugin's instance, for the hook at its end.
_plugin = None

# (kind, class, message, missing, watch, traceback)
Failure = tuple


def load(init) -> tuple:
    """Gives ``(tools, None, extensions)`` or ``(None, failure, None)``; see
    ``_host.serve``."""
    global _plugin
    if init.packages:
        # Before the plugin's directory is on the path: it may have modules with
        # the names of those that are imported here.
        from stockade import _packages
    _make_importable(init.directory)
    if init.packages:
        missing, hint = _packages.missing(init.packages, init.directory)
        if missing:
            watch = _packages.places(init.directory)
            return None, ("missing", "Missing", hint, missing, watch, ""), None
    if init.check_only:
        return None, ("missing", "Missing", "", [], [], ""), None
    module_name, _, class_name = init.entry.partition(":")
    try:
        init.progress(0.0, f"importing {module_name}")
        module = _import(module_name, init.directory)
    except BaseException as error:
        return None, _failure("import", error), None
    _configure_logging()
    try:
        init.progress(0.0, f"making {class_name}")
        _plugin = _contract.instance(module, class_name, init)
        _configure_logging()
        _contract.check_name(_plugin)
        _call_hook("on_load")
        tools = _contract.tools(_plugin, init)
        extensions = _extensions(module)
    except _contract.missing_error() as error:
        return None, ("missing", "Missing", error.how, [error.what], [], ""), None
    except BaseException as error:
        return None, _failure("init", error), None
    try:
        if _call_hook("validate") is False:
            raise ValueError("validate() returned False")
    except BaseException as error:
        return None, _failure("validate", error), None
    return tools, None, extensions


def _extensions(module) -> list:
    """What it registers besides tools, if it has imported what that takes."""
    if "stockade._extensions" not in sys.modules:
        return []
    from stockade import _extensions

    owner = module if isinstance(_plugin, _contract._Functions) else _plugin
    return _extensions.collect(owner, module)


def unload() -> None:
    """Runs the plugin's last hook and what it registered for its end."""
    try:
        _call_hook("on_unload")
    finally:
        import atexit

        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()


def _call_hook(name: str):
    hook = getattr(_plugin, name, None)
    if not callable(hook):
        return None
    result = hook()
    if hasattr(result, "__await__"):
        from stockade import _async

        return _async.run(result, None)
    return result


def _failure(kind: str, error: BaseException) -> Failure:
    from stockade import _failure

    name, message, traceback = _failure.describe(error)
    return (kind, name, message, [], [], traceback)


def _make_importable(directory: str) -> None:
    """The directory and its ``src`` come first; our own folder and the current
    directory are not in the way."""
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    rest = [path for path in sys.path if path not in ("", own)]
    source = os.path.join(directory, "src")
    front = [source, directory] if os.path.isdir(source) else [directory]
    if any(directory.startswith(os.path.join(path, "")) for path in rest):
        # An installed package: its modules are found by their full names.
        front = []
    # Children that Python itself starts (multiprocessing) find us at the end.
    sys.path[:] = [*front, *rest, own]
    from stockade import _compat

    sys.meta_path.append(_compat.Finder)


def _import(name: str, directory: str):
    """The plugin's module. A directory that is itself the package is imported
    under its own name, so that its relative imports work."""
    root = name.partition(".")[0]
    if root == "stockade":
        raise ImportError(
            "the plugin's package is called stockade, as Stockade's own: give it another name"
        )
    if os.path.exists(os.path.join(directory, "__init__.py")):
        folder = os.path.basename(directory)
        inside = os.path.exists(os.path.join(directory, *name.split(".")) + ".py")
        package = folder if root == folder else "".join(c if c.isalnum() else "_" for c in folder)
        if root == folder or inside:
            _import_package(package, directory)
        if root != folder and inside:
            name = f"{package}.{name}"
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0] or error.name in sys.modules:
            raise
        missing = name.replace(".", "/") + ".py"
        raise ImportError(f"{missing} not found in {directory}") from None


def _import_package(name: str, directory: str) -> None:
    """The directory as the package ``name``, whatever it is called on the disk."""
    from importlib.util import module_from_spec, spec_from_file_location

    file = os.path.join(directory, "__init__.py")
    spec = spec_from_file_location(name, file, submodule_search_locations=[directory])
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _configure_logging() -> None:
    if "logging" in sys.modules:
        from stockade import _logging

        _logging.configure()
