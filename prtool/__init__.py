"""prtool: a frozen CLIP image encoder, made faster by pruning patches.

Usage::

    from prtool import Encoder

    with Encoder.load("bundle") as encoder:
        embeddings = encoder.encode_images(["cat.jpg", "dog.jpg"], keep=0.6)  # (2, E) float32, L2-normalised
"""

from importlib import import_module
from typing import TYPE_CHECKING

from prtool.errors import PrtoolError
from prtool.telemetry import switch_off
from prtool.version import __version__

if TYPE_CHECKING:
    from prtool.bundle import Bundle
    from prtool.manifest import Manifest
    from prtool.runtime.encoder import Encoder
    from prtool.spec import Keep

__all__ = ["Bundle", "Encoder", "Keep", "Manifest", "PrtoolError", "__version__"]

_HOMES = {"Bundle": "prtool.bundle", "Encoder": "prtool.runtime.encoder", "Keep": "prtool.spec", "Manifest": "prtool.manifest"}


# Here, because whatever imports a library for prtool imports this first.
switch_off()


def __getattr__(name: str) -> object:
    """Loads a public name when it is first used, so that `import prtool` takes milliseconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prtool' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
