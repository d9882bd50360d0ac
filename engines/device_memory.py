"""What a native library needs of an array on the device, whichever array library made it."""

from typing import Any

import numpy as np

from prtool.engines.base import Array, DeviceArray
from prtool.errors import ShapeError


def address(array: DeviceArray) -> int:
    """The address of an array's memory: a torch tensor's, or by the CUDA array interface."""
    if hasattr(array, "data_ptr"):
        return int(array.data_ptr())
    return int(array.__cuda_array_interface__["data"][0])


def outline(name: str, array: DeviceArray) -> Array:
    """A host array of the same shape and dtype, without memory of its own, to be checked in the array's place.

    Raises:
        ShapeError: the array is not contiguous, or of a dtype that numpy has not.
    """
    contiguous = array.is_contiguous() if hasattr(array, "is_contiguous") else array.flags.c_contiguous
    if not contiguous:
        raise ShapeError(f"{name} is not contiguous on the device; make it so (.contiguous() in PyTorch, ascontiguousarray in CuPy)")
    return np.broadcast_to(np.zeros((), _dtype(name, array)), tuple(array.shape))


def _dtype(name: str, array: DeviceArray) -> np.dtype[Any]:
    """numpy's dtype; torch's are named alike, behind "torch."."""
    try:
        return np.dtype(str(array.dtype).removeprefix("torch."))
    except TypeError as cause:
        raise ShapeError(f"{name} has dtype {array.dtype}, which no graph takes; give float32 or int64") from cause
