"""The main function of a plugin's process: adopts the channels, then serves."""

import faulthandler
import os
import sys

from stockade import _host

# The pipe for last words (docs/lifecycle.md).
_NOTICE = 5


def main() -> None:
    """Hosts the plugin that the supervisor names. Never returns."""
    if not _host.adopt():
        sys.exit(
            "This process hosts a Stockade plugin. It is started by the daemon, not by hand:\n"
            "  stockade serve --plugins DIR    (DIR holds one directory per plugin)"
        )
    # Python's stacks go to the pipe that the supervisor reads; our own handler,
    # which announces the death first, goes over Python's.
    faulthandler.enable(_NOTICE, all_threads=True)
    faulthandler.register(_host.STACKS_SIGNAL, _NOTICE, all_threads=True)
    _host.install_fatal_handler()
    os.register_at_fork(after_in_child=_host.forked)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    _host.serve(_load, _unload)


def stacks() -> None:
    """Prints the stack of every thread for the supervisor."""
    faulthandler.dump_traceback(_NOTICE, all_threads=True)


def _load(init: "_host.Init") -> tuple:
    from stockade import _load

    return _load.load(init)


def _unload() -> None:
    from stockade import _load

    _load.unload()
