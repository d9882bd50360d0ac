"""Text from elsewhere (file names, class names, values of files) made safe to show: one line, of limited length, nothing hidden."""

import unicodedata

LINE_CHARACTERS = 1000
"""Length of an error line at most."""
VALUE_CHARACTERS = 120
"""Length at most of one value in a message."""
_GAP = " ... "
# Characters that reorder what stands around them, so that a name can look like another.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSAFE_CATEGORIES = frozenset(("Cc", "Cs", "Zl", "Zp"))
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def printable(text: object, limit: int = VALUE_CHARACTERS) -> str:
    r"""`str(text)` on one line of at most `limit` characters.

    Control characters (ESC and line breaks among them), lone surrogates and bidirectional overrides become escapes such as
    `\x1b`; a byte of a file name that is not valid Unicode becomes `\xe9`. The middle of a longer text is replaced by " ... ".

    Args:
        text: any value; it is read by `str`.
        limit: characters of the result, at least 16.
    """
    whole = str(text)
    # Escapes only lengthen, so more than `limit` characters of either end are never shown.
    head = escaped(whole[:limit])
    if len(whole) <= limit and len(head) <= limit:
        return head
    room = limit - len(_GAP)
    tail = escaped(whole[-limit:])
    return head[: room - room // 2] + _GAP + tail[len(tail) - room // 2 :]


def escaped(text: object) -> str:
    """`str(text)` on one line, whole: as `printable`, without a limit. For results, of which nothing may be lost."""
    whole = str(text)
    return whole if whole.isascii() and whole.isprintable() else "".join(map(_shown, whole))


def _shown(character: str) -> str:
    if character not in _BIDI and unicodedata.category(character) not in _UNSAFE_CATEGORIES:
        return character
    code = ord(character)
    if code < 0x100:
        return _SHORT.get(character, f"\\x{code:02x}")
    # os.fsdecode keeps a byte that is not valid Unicode as the surrogate U+DC00 + byte.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
