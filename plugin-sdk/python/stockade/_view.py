"""Memory views over bytes that the host holds."""

import ctypes

# One type per power of two: ctypes keeps every array type that it has made.
_TYPES: dict = {}


def view(memory) -> memoryview:
    """A read-only view of ``memory``. The array under it, and so every slice and
    every numpy array over it, keeps ``memory`` alive."""
    size = len(memory)
    bits = size.bit_length()
    kind = _TYPES.get(bits)
    if kind is None:
        kind = _TYPES[bits] = ctypes.c_char * (1 << bits)
    # The array may be longer than the bytes; the view is not.
    array = kind.from_address(memory.address)
    array._memory = memory
    return memoryview(array).cast("B")[:size].toreadonly()
