"""Typed records: dataclasses read strictly from plain JSON or TOML values, with their settings' meanings and limits at the fields."""

import dataclasses
import difflib
import functools
import math
import operator
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypedDict, Union, Unpack, get_args, get_origin, get_type_hints

from prtool.errors import ConfigError
from prtool.strict import JSON_INTEGER
from prtool.text_safety import LINE_CHARACTERS, printable

_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "minimum": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "maximum": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


class Limits(TypedDict, total=False):
    """What a value, or each item of a list, must be; a list with `choices` holds none twice."""

    minimum: float
    above: float
    maximum: float
    below: float
    choices: tuple[str, ...]


def setting(default: object, meaning: str, **limits: Unpack[Limits]) -> Any:  # noqa: ANN401 - as dataclasses.field
    """A dataclass field that a user sets, with its meaning and unit, which `--show-config` prints, and limits for `check_settings`."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "limits": limits})


def meanings(kind: Any, prefix: str = "") -> dict[str, str]:  # noqa: ANN401 - a dataclass
    """Dotted name -> meaning of every setting of a dataclass and of its sections."""
    found: dict[str, str] = {}
    for item in dataclasses.fields(kind):
        if "meaning" in item.metadata:
            found[prefix + item.name] = item.metadata["meaning"]
        elif dataclasses.is_dataclass(section := _hints(kind)[item.name]):
            found |= meanings(section, f"{prefix}{item.name}.")
    return found


def check_settings(record: Any, section: str = "") -> None:  # noqa: ANN401 - a dataclass
    """Raises ConfigError where a `setting` of a dataclass is outside its limits; its name in the message begins with `section`."""
    for item in dataclasses.fields(record):
        if "limits" in item.metadata:
            check_value(_join(section, item.name), getattr(record, item.name), **item.metadata["limits"])


def check_value(name: str, value: object, **limits: Unpack[Limits]) -> None:
    """Raises ConfigError where a value, or an item of a tuple, is outside the limits."""
    choices, items = limits.get("choices"), value if isinstance(value, tuple) else (value,)
    for item in items:
        allowed = item in choices if choices else all(holds for holds, _ in _bounds(item, limits))
        if not allowed:
            wanted = f"one of {', '.join(choices)}" if choices else " and ".join(text for _, text in _bounds(item, limits))
            near = difflib.get_close_matches(item, choices, n=3) if choices and isinstance(item, str) else ()
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError(f"{name} = {_shown(value)}, but {'each' if items is value else 'it'} must be {wanted}{hint}")
    if choices and len(set(items)) != len(items):
        raise ConfigError(f"{name} = {_shown(value)}, but it names one value twice; give some of {', '.join(choices)}, each once")


def check_name(name: str, known: Collection[str], where: str = "") -> None:
    """Raises ConfigError where a field's name, in the section `where`, is not among those that are known."""
    if name not in known:
        near = difflib.get_close_matches(name[:100], known, n=3, cutoff=0.4)
        hint = f"near names: {', '.join(near)}" if near else f"known names: {', '.join(known)}"
        raise ConfigError(f"unknown name {_shown(_join(where, name))}; {hint}")


def _bounds(value: Any, limits: Limits) -> Iterator[tuple[bool, str]]:  # noqa: ANN401
    """Each bound: whether the value holds it, and its text."""
    if isinstance(value, float):
        yield math.isfinite(value), "a finite number"
    for name, bound in limits.items():
        if name in _BOUNDS:
            holds, text = _BOUNDS[name]
            yield holds(value, bound), f"{text} {bound}"


def to_plain(value: Any) -> Any:  # noqa: ANN401 - any plain value
    """Dataclasses and tuples, at any depth, as plain JSON objects and lists; `from_plain` reads them back."""
    if dataclasses.is_dataclass(value):
        return {item.name: to_plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def from_plain(kind: Any, value: object, where: str = "") -> Any:  # noqa: ANN401 - the type is the argument
    """Builds a value of the annotated type `kind` from plain JSON or TOML values, strictly.

    Args:
        kind: a dataclass, tuple[x, ...], tuple[x, y], dict[str, x], x | y, None, Any, str, int, float or bool; whole numbers are floats too.
        value: what was read.
        where: its name in messages; "" at the top.

    Raises:
        ConfigError: a field is unknown or missing, a value is of the wrong type, or a number is not finite or beyond +-2^53.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in _LEAVES:
        wanted, fits = _LEAVES[kind]
        if not fits(value):
            raise ConfigError(f"{where} = {_shown(value)}, but it must be {wanted}")
        return float(value) if kind is float else value  # type: ignore[arg-type]
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if origin in (types.UnionType, Union):
        exact = [item for item in arguments if type(value) is item]
        return value if exact else from_plain(next(item for item in arguments if item is not types.NoneType), value, where)
    if origin is tuple:
        return _read_tuple(arguments, value, where)
    if origin is dict:
        return {str(key): from_plain(arguments[1], item, _join(where, printable(key))) for key, item in _mapping(value, where).items()}
    return value


def _is_whole(value: Any) -> bool:  # noqa: ANN401
    return type(value) is int and abs(value) <= JSON_INTEGER


_LEAVES: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ('text ("...")', lambda value: type(value) is str),
    int: ("a whole number within +-2^53", _is_whole),
    float: ("a finite number", lambda value: _is_whole(value) or (type(value) is float and math.isfinite(value))),
    bool: ("true or false", lambda value: type(value) is bool),
}


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read_dataclass(kind: Any, value: object, where: str) -> Any:  # noqa: ANN401
    hints, found = _hints(kind), _mapping(value, where)
    for name in found:
        check_name(str(name), hints, where)
    required = [item.name for item in dataclasses.fields(kind) if item.default is item.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in found]:
        raise ConfigError(f"{where or 'the record'} lacks {', '.join(missing)}")
    values = {name: from_plain(hints[name], item, _join(where, name)) for name, item in found.items()}
    try:
        return kind(**values)
    except ConfigError as cause:
        if len(str(cause)) <= LINE_CHARACTERS:
            raise
        raise ConfigError(printable(cause, LINE_CHARACTERS)) from cause


def _read_tuple(arguments: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} = {_shown(value)}, but it must be a list")
    kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
    if len(kinds) != len(value):
        raise ConfigError(f"{where} = {_shown(value)}, but it must hold {len(kinds)} values")
    if arguments[-1] is Ellipsis and arguments[0] in (str, int) and all(map(_LEAVES[arguments[0]][1], value)):
        return tuple(value)  # a million class names
    return tuple(from_plain(kind, item, f"{where}[{number}]") for number, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where or 'the whole'} = {_shown(value)}, but it must be a section of named values")
    return value


def _shown(value: object) -> str:
    return printable(repr(list(value) if isinstance(value, tuple) else value))


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
