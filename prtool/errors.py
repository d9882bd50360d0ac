"""Every error that prtool raises on purpose, as one tree.

::

    PrtoolError                 exit status 1, one line on stderr
    ├── ConfigError             an option or setting has a value that cannot be used (also a ValueError)
    │   ├── KeepError           a keep ratio or count outside its range
    │   └── ShapeError          an array's shape or dtype is not what was declared
    ├── DataError               a data set is missing, empty or not understood
    │   └── ImageError          one image cannot be decoded
    ├── ModelError              a model is unknown, or its image tower is of an unsupported kind
    ├── CheckpointError         a run directory is missing, damaged or of another schema
    ├── BundleError             a bundle is missing, damaged, unsafe or of another schema
    ├── ParityError             an export or an engine disagrees with the reference
    ├── EngineError             an engine failed while it loaded or ran
    │   └── EngineUnavailable   the engine's library is not installed, or finds no device
    └── StorageError            a file could not be written (disk full, no permission, read-only)

    InputWarning                a Python warning: unlikely values, such as pixels of 0 to 255 instead of normalised

A message says what was wrong, which value it had, what was possible, and what to do.
"""

from prtool.text_safety import LINE_CHARACTERS, printable


class PrtoolError(Exception):
    """Base of every error raised on purpose; its text is one printable line of limited length, whatever it echoes of files and libraries."""

    def __str__(self) -> str:
        return printable(super().__str__(), LINE_CHARACTERS)


class ConfigError(PrtoolError, ValueError):
    """An option or setting has a value that cannot be used."""


class KeepError(ConfigError):
    """A keep ratio or keep count is outside its range."""


class ShapeError(ConfigError):
    """An array's shape or dtype is not the declared one."""


class DataError(PrtoolError):
    """A data set is missing, empty or not understood."""


class ImageError(DataError):
    """One image cannot be decoded."""


class ModelError(PrtoolError):
    """A model is unknown, or its image tower is of an unsupported kind."""


class CheckpointError(PrtoolError):
    """A run directory is missing, damaged or of another schema."""


class BundleError(PrtoolError):
    """A bundle is missing, damaged, unsafe or of another schema."""


class ParityError(PrtoolError):
    """An exported graph or an engine disagrees with the reference."""


class EngineError(PrtoolError):
    """An engine failed while it loaded or ran."""


class EngineUnavailable(EngineError):
    """The engine's library is not installed, or it finds no device to run on."""


class InputWarning(UserWarning):
    """An array has the right shape and dtype, but values that cannot be meant; what was asked for is computed all the same."""


class StorageError(PrtoolError):
    """A file could not be written: disk full, no permission, read-only file system."""
