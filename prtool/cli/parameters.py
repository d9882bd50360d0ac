"""What the commands share: types of values, and options made from the functions of `prtool.api`."""

import functools
import inspect
import os
import re
import textwrap
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import click

from prtool import api
from prtool.errors import DataError, PrtoolError
from prtool.spec import Keep
from prtool.strict import parse_toml
from prtool.text_safety import printable

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Values(click.ParamType[Any]):
    """One value, or with `several` a tuple of values with commas between; `read` raises PrtoolError or ValueError."""

    def __init__(self, name: str, read: Callable[[str], object], *, several: bool = True) -> None:
        self.name = f"{name}[,...]" if several else name
        self._read, self._several = read, several

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - as click declares
        """Text to values; defaults pass through."""
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",")]
        try:
            if len(parts) > 1 and not self._several:
                raise ValueError(f"{printable(repr(value))} is a list; give one value")
            found = tuple(map(self._read, parts))
        except (PrtoolError, ValueError) as cause:
            self.fail(str(cause), param, ctx)
        return found if self._several else found[0]


class FileName(click.ParamType[Path]):
    """A file's path that ends in one of a few suffixes."""

    name = "file"

    def __init__(self, *suffixes: str) -> None:
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ANN401
        """Text to a path."""
        path = Path(value)
        if path.suffix.lower() not in self.suffixes:
            self.fail(f"{printable(path)} must end in {' or '.join(self.suffixes)}", param, ctx)
        return path


def whole(text: str) -> int:
    """A whole number above 0."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"{printable(repr(text))} is not a whole number above 0, such as 8")
    return int(text)


def batch_range(text: str) -> int | tuple[int, ...]:
    """A number of images, or MIN:OPT:MAX."""
    parts = text.split(":")
    if len(parts) not in (1, 3):
        raise ValueError(f"{printable(repr(text))} is neither a number, such as 8, nor MIN:OPT:MAX, such as 1:8:32")
    return whole(text) if len(parts) == 1 else tuple(map(whole, parts))


FOLDER = click.Path(path_type=Path)
_KINDS = {Keep: Values("keep", Keep.parse, several=False), bool: bool, Path: FOLDER, str: str, int: click.IntRange(0), float: float}
"""Type of a parameter -> type of its option; of an annotation with several, the first here."""


def verb_options(verb: Callable[..., object], *settings: str, only: Sequence[str] = (), **kinds: Any) -> Decorator:  # noqa: ANN401 - types of click
    """Options for the parameters of a function of `prtool.api`, or for `only` some, with their names, defaults and texts.

    `settings` are named in the help of `--set`; `kinds` are the types of options that the annotation does not say.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        texts, parameters = _texts(verb), inspect.signature(verb).parameters
        for name in reversed(only or [name for name in parameters if name != "progress"]):
            if name == "settings":
                command = settings_option(*settings)(command)
            elif name == "run" and parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
                command = click.argument("run", type=FOLDER, default=Path(api.RUN))(command)
            else:
                command = _option(parameters[name], texts[name], kinds.get(name))(command)
        return command

    return add


def _option(parameter: inspect.Parameter, text: str, kind: Any) -> Decorator:  # noqa: ANN401
    default, alternatives = parameter.default, [parameter.annotation, *get_args(parameter.annotation)]
    several, repeated = any(get_origin(item) is Sequence for item in alternatives), get_origin(parameter.annotation) is Sequence
    if kind is None:
        named = next(kind for kind in _KINDS if kind in alternatives)
        read = {Keep: Keep.parse, int: whole}.get(named, str)
        kind = Values(parameter.name, read) if several else click.IntRange(1) if named is int and default else _KINDS[named]
    text = text[0].upper() + text[1:].removesuffix(".") + ("; may be given again." if repeated else "; several with commas." if several else ".")
    attributes: dict[str, Any] = {"default": default, "is_flag": default is False, "multiple": repeated}
    if default is inspect.Parameter.empty:
        attributes = {"required": True}
    elif default not in (None, ()) and default is not False:
        text += f"  [default: {(',' if several else ':').join(map(str, default)) if isinstance(default, tuple) else default}]"
    names = [*(["-o"] if parameter.name == "output" else []), f"--{parameter.name.replace('_', '-')}", parameter.name]
    return click.option(*names, type=kind, help=text, **attributes)


def _texts(verb: Callable[..., object]) -> dict[str, str]:
    """Name -> text of each parameter in a docstring's `Args:`, without marks of code."""
    block = inspect.cleandoc(verb.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    items = (item.partition(": ") for item in re.split(r"\n(?=\S)", textwrap.dedent(block)))
    return {name: " ".join(text.replace('"', "").replace("`", "'").split()) for name, _, text in items}


def settings_option(*names: str) -> Decorator:
    """`--set KEY=VALUE` for settings that have no option of their own; it reaches the command as the dictionary `settings`."""
    return click.option(
        *("--set", "settings"),
        multiple=True,
        metavar="KEY=VALUE",
        callback=lambda _context, _option, items: settings_of(items),
        help=f"Further settings: {', '.join(names)}.",
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
images_argument = click.argument("images", metavar="PATH...", nargs=-1, required=True, type=FOLDER)
keep_option = click.option("--keep", type=_KINDS[Keep], help="Patches that stay: a ratio (0.6) or a count (118); default: the bundle's.")
jpeg_option = click.option(
    "--jpeg-scaling", is_flag=True, help="Decode large JPEGs at 1/2, 1/4 or 1/8 of their size: faster, nearly the same pixels."
)
mode_option = click.option(
    *("--mode", "mode"),
    type=click.Choice(["fused", "split", "full"]),
    default="fused",
    show_default=True,
    help="Of fused (one graph), split (two, with the selection between them) and full (the unpruned model).",
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what a command needs to run a bundle; the options reach it as `loading`, a dictionary of arguments for `Encoder.load` but `mode`."""

    @verb_options(api.verify, "streams", "spinning", "cache", only=("bundle", "engine", "precision", "threads", "device", "settings"))
    @functools.wraps(command)
    def run(*, bundle: Path, engine: str, precision: str, threads: int, device: int, settings: Mapping[str, object], **others: Any) -> None:  # noqa: ANN401
        from prtool.api import checked_bundle
        from prtool.api import engine_options as options

        def loading() -> dict[str, Any]:
            opened = checked_bundle(bundle, engine, precision)
            return {"bundle": opened, "engine": engine, "precision": precision, "options": options(threads, device, settings)}

        command(loading=loading, **others)

    return run


def check_images(paths: Sequence[Path], *, folders: bool = True) -> None:
    """Raises UsageError or DataError, before anything is loaded, where a path is a bundle, a folder that is not taken, or missing."""
    from prtool.bundle import MANIFEST_NAME

    for path in paths:
        # os.path: Path raises where a name is too long.
        if os.path.isfile(path / MANIFEST_NAME):  # noqa: PTH113
            raise click.UsageError(f"{printable(path)} is a bundle, and images were expected there; give it as --bundle {printable(path)}")
        if not os.path.exists(path):  # noqa: PTH110
            raise DataError(f"{printable(path)} does not exist; give image files{' or folders of images' if folders else ''}")
        if not folders and os.path.isdir(path):  # noqa: PTH112
            raise click.UsageError(f"{printable(path)} is a folder, and image files were expected; 'prtool embed' takes folders")


def settings_of(items: Sequence[str]) -> dict[str, object]:
    """`KEY=VALUE` words as settings; a value that is no TOML value is text."""
    found: dict[str, object] = {}
    for item in items:
        key, separator, text = item.partition("=")
        if not separator or not key.strip():
            raise click.UsageError(f"--set takes KEY=VALUE, but it was given {printable(repr(item))}")
        try:
            found[key.strip()] = parse_toml(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = text
        except ValueError as cause:
            raise click.UsageError(f"--set {printable(key)} cannot be used: {cause}") from cause
    return found
