"""Configurations from a caller's arguments and from settings by dotted name, as `--set` gives them."""

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from prtool.errors import ConfigError
from prtool.records import from_plain
from prtool.text_safety import printable

Config = TypeVar("Config")


def configure(kind: type[Config], given: Mapping[str, Any], settings: Mapping[str, object] | None = None, where: str = "") -> Config:
    """A configuration: `given` by field, then `settings`, dotted names such as "build.level" with plain values, which are read strictly.

    Raises:
        ConfigError: there is no such field, named after `where`, or a value is of the wrong type or out of range.
    """
    hints = get_type_hints(kind)
    values, sections = dict(given), dict[str, dict[str, object]]()
    for name, value in (settings or {}).items():
        head, _, rest = name.partition(".")
        if head not in hints or (rest and not dataclasses.is_dataclass(hints[head])):
            near = difflib.get_close_matches(head, hints, n=3, cutoff=0.4)
            raise ConfigError(f"unknown setting {printable(repr(where + name))}; known names: {', '.join(near or hints)}")
        if rest:
            sections.setdefault(head, {})[rest] = value
        else:
            is_path = Path in get_args(hints[head]) and isinstance(value, (str, Path))
            values[head] = Path(str(value)) if is_path else from_plain(hints[head], value, where + name)
    for name, inner in sections.items():
        base = {item.name: getattr(values[name], item.name) for item in dataclasses.fields(hints[name])} if name in values else {}
        values[name] = configure(hints[name], base, inner, f"{where}{name}.")
    return kind(**values)
