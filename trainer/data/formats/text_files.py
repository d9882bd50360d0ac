"""Text that people write next to images, in the encodings that spreadsheets save: UTF-8 with or without a mark, and UTF-16 with one."""

import codecs
from pathlib import Path

from prtool.errors import DataError
from prtool.strict import read_regular

_MAX_BYTES = 1 << 30
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode_text(content: bytes) -> str:
    """The text without its byte-order mark.

    Raises:
        UnicodeDecodeError: it is neither UTF-8 nor UTF-16 with a mark.
    """
    return content.decode("utf-16" if content.startswith(_WIDE) else "utf-8-sig")


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        DataError: it cannot be read, is no regular file, or is no text.
    """
    try:
        return decode_text(read_regular(file, _MAX_BYTES))
    except (OSError, ValueError) as cause:
        raise DataError(f"{file} cannot be read as UTF-8 text: {getattr(cause, 'strerror', None) or cause}") from cause


def read_lines(file: Path) -> list[str]:
    """The lines of a text file without surrounding blanks, empty ones left out.

    Raises:
        DataError: it cannot be read, is no regular file, or is no text.
    """
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]
