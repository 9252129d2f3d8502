"""Memory views over bytes that the host holds."""

import ctypes


def view(memory) -> memoryview:
    """A read-only view of ``memory``. The array under it, and so every slice and
    every numpy array over it, keeps ``memory`` alive."""
    array = (ctypes.c_char * len(memory)).from_address(memory.address)
    array._memory = memory
    return memoryview(array).cast("B").toreadonly()
