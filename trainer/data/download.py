"""Downloads of known data sets, by torchvision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

from prtool.errors import DataError, StorageError
from prtool.exchange import claimed, put_folder, sweep
from prtool.files import NEW_FOLDER, check_output
from prtool.trainer.data.formats.known import KNOWN


def downloadable() -> tuple[str, ...]:
    """The names that `download` takes."""
    return tuple(name for name, known in KNOWN.items() if known.torchvision)


def download(name: str, root: str | Path) -> str:
    """Downloads a known set into a folder of data sets, whole or not at all, and keeps what is there already.

    Args:
        name: one of `downloadable()`.
        root: the folder of data sets; the set gets torchvision's folder in it.

    Returns:
        What `--data` takes: NAME:ROOT.

    Raises:
        DataError: the set is unknown, has no downloader, the download failed, or something else stands in its folder.
        StorageError: it cannot be written.
    """
    known = KNOWN.get(name)
    if known is None or not known.torchvision:
        reason = f"{name!r} is not a known set" if known is None else f"{name} cannot be downloaded for you: {known.source}"
        raise DataError(f"{reason}; these can be downloaded: {', '.join(downloadable())}")
    import torchvision.datasets

    folder = Path(root)
    make: Callable[..., Any] = getattr(torchvision.datasets, known.torchvision)
    # The last of its homes is torchvision's, which may name a folder in it.
    home = folder / known.homes[-1].split("/")[0]
    try:
        if home.is_dir() and any(home.iterdir()):
            make(str(folder), download=False)
        else:
            check_output(home, NEW_FOLDER)
            sweep(home)
            with claimed(home, folder=True) as temporary:
                make(str(temporary), download=True)
                put_folder(temporary / home.name, home)
    except (RuntimeError, URLError, EOFError, ModuleNotFoundError) as cause:
        raise DataError(
            f"{name} could not be downloaded to {home}: {cause}; move away what stands there and try again, {known.explain(folder)}"
        ) from cause
    except OSError as cause:
        raise StorageError(f"cannot write {name} to {folder}: {cause.strerror or cause}") from cause
    return f"{name}:{folder}"
