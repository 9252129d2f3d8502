"""Numpy arrays as attachments, in the format of ``numpy.save`` (.npy)."""

import io

import numpy

from stockade import _host

CONTENT_TYPE = "application/x-npy"
_MAGIC = b"\x93NUMPY"


def plain(value):
    """A number for a scalar; an attachment for an array."""
    array = numpy.asarray(value)
    if array.ndim == 0 and not isinstance(value, numpy.ndarray):
        return array.item()
    return blob(array)


def blob(array: numpy.ndarray) -> "_host.Blob":
    """The array as an attachment: one copy, of the array's own memory."""
    if array.dtype.hasobject:
        raise TypeError(f"an array of {array.dtype} is neither JSON nor bytes")
    array = numpy.ascontiguousarray(array)
    header = io.BytesIO()
    described = numpy.lib.format.header_data_from_array_1_0(array)
    numpy.lib.format.write_array_header_1_0(header, described)
    body: "bytes | memoryview"
    try:
        body = array.reshape(-1).data.cast("B")
    except (TypeError, ValueError):
        # Dates have no buffer.
        body = array.tobytes()
    data = b"".join((header.getvalue(), body))
    return _host.Blob(data, CONTENT_TYPE)


def array(view: memoryview) -> numpy.ndarray:
    """A read-only array over the bytes of an attachment, not copied: of .npy as
    it says, of anything else one dimension of bytes."""
    if bytes(view[: len(_MAGIC)]) != _MAGIC:
        return numpy.frombuffer(view, dtype=numpy.uint8)
    # The header is at most 64 KiB long.
    head = io.BytesIO(bytes(view[: 1 << 16]))
    version = numpy.lib.format.read_magic(head)
    read = {
        (1, 0): numpy.lib.format.read_array_header_1_0,
        (2, 0): numpy.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"unknown version {version} of the .npy format")
    shape, fortran, dtype = read(head)
    if dtype.hasobject:
        raise ValueError("an array of Python objects is not taken: it would run code")
    flat = numpy.frombuffer(view, dtype=dtype, offset=head.tell())
    return flat.reshape(shape, order="F" if fortran else "C")
