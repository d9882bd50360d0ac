"""Tensors of a bundle's safetensors files."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load

from prtool.bundle import Bundle
from prtool.engines.base import Array
from prtool.errors import BundleError
from prtool.text_safety import printable

# numpy takes at most 64 axes (ValueError) and knows neither float8 nor bfloat16 (KeyError).
_FAILURES = (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError)


def read_tensors(bundle: Bundle, name: str, most_bytes: int) -> dict[str, Array]:
    """The tensors of one safetensors file of a bundle, by name.

    Raises:
        BundleError: there is no such file, it has more than `most_bytes`, is damaged, holds a type or shape that numpy has not, or the
            bundle changed since it was opened.
    """
    path = bundle.file(name)
    try:
        return load(bundle.read(name, most_bytes))
    except _FAILURES as cause:
        reason = printable(cause) or type(cause).__name__
        raise BundleError(f"{path} cannot be read ({reason}); copy or export the bundle again") from cause


def checked(tensors: Mapping[str, Array], name: str, shape: tuple[int, ...], dtype: str, path: Path) -> Array:
    """The tensor of that name; raises BundleError where it is missing, empty, or of another shape or dtype."""
    found = tensors.get(name)
    if found is None:
        held = printable(", ".join(tensors)) or "nothing"
        raise BundleError(f"{path} has no tensor {name}; it holds {held}; export the bundle again")
    if found.shape != shape or found.dtype != dtype or found.size == 0:
        raise BundleError(f"{path} holds {name} as {found.dtype} {found.shape}, but it must be {dtype} {shape}; export the bundle again")
    return found
