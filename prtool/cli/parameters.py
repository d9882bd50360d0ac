"""What the commands share: types of values, and the options of several commands, each with one type, meaning and help text.

An option has the name of its parameter in `prtool.api`, and takes its default from there.
"""

import functools
import inspect
import operator
import os
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from prtool import api
from prtool.errors import DataError, PrtoolError
from prtool.spec import Keep
from prtool.strict import parse_toml
from prtool.text_safety import printable

Verb = Callable[..., object]
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


class Values(click.ParamType[Any]):
    """One value, or several with commas between.

    Args:
        name: what a value is, for the help.
        read: one value from its text; raises PrtoolError or ValueError.
        several: a list is taken, as a tuple; else exactly one value.
    """

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


def word(*known: str) -> Callable[[str], str]:
    """Reads one of a few words."""

    def read(text: str) -> str:
        if known and text not in known:
            raise ValueError(f"{printable(repr(text))} is not one of {', '.join(known)}")
        return text

    return read


FOLDER = click.Path(path_type=Path)
_SHARED: dict[str, tuple[Any, str]] = {
    "bundle": (FOLDER, "Bundle folder."),
    "run": (FOLDER, "Run folder."),
    "data": (str, "FOLDER, NAME:FOLDER (caltech101:photos), FILE.csv, or several with commas; docs/data.md."),
    "keep": (Keep.parse, "Patches kept: a ratio (0.6) or a count (118)"),
    "batch": (whole, "Images per call"),
    "engine": (word(), "What runs the graphs; 'prtool doctor' lists the names"),
    "precision": (word(*PRECISIONS), f"Arithmetic: {', '.join(PRECISIONS)}, as engine and bundle have it"),
    "mode": (word("fused", "split", "full"), "fused (one graph), split (two), or full (unpruned)"),
    "threads": (click.IntRange(0), "CPU threads; 0 takes all that are granted."),
    "device": (click.IntRange(0), "Number of the GPU."),
}
"""Options of several commands: how a value is read, and the help. Those whose help lacks its full stop take one value or several."""


DEFAULTS = {"bundle": api.BUNDLE, "keep": None, "batch": 8, "engine": "ort", "precision": "fp32", "mode": "fused", "threads": 0, "device": 0}
"""Of commands that use an `Encoder` and no function of `prtool.api`: those of `Encoder.load` and `EngineOptions`."""


class SettingOption(click.Option):
    """An option for a setting of `prtool.toml`; its help is the setting's meaning, read when it is printed: the settings take time to import."""

    def __init__(self, *names: Any, setting: str, **attributes: Any) -> None:  # noqa: ANN401 - as click.Option
        """`setting`: its dotted name."""
        super().__init__(*names, **attributes)
        self.setting = setting

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """See click.Option."""
        from prtool.records import meanings
        from prtool.trainer.config import TrainConfig

        default = operator.attrgetter(self.setting)(TrainConfig())
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        text = meanings(TrainConfig)[self.setting]
        self.help = f"{text[0].upper()}{text[1:]}.{f'  [default: {shown}]' if shown else ''}"
        return super().get_help_record(ctx)


def option(verb: Verb | None, *names: str, joined: str = ",", **attributes: Any) -> Decorator:  # noqa: ANN401 - as click.option
    """An option of a verb's command, named as the verb's parameter, with its default; a list shows `joined`."""
    name = names[-1].lstrip("-").replace("-", "_")
    default = DEFAULTS[name] if verb is None else inspect.signature(verb).parameters[name].default
    if default is inspect.Parameter.empty:
        return click.option(*names, name, required=True, **attributes)
    shown = f"  [default: {joined.join(map(str, default))}]" if isinstance(default, tuple) and default else ""
    scalar = isinstance(default, (str, int, float)) and not isinstance(default, bool)
    return click.option(*names, name, default=default, show_default=scalar, **{**attributes, "help": attributes.get("help", "") + shown})


def shared(*names: str, verb: Verb | None = None, several: Collection[str] = (), **unset: str) -> Decorator:
    """Options of several commands, in this order.

    Args:
        names: keys of the table.
        verb: function of `prtool.api` that has their defaults; None takes `DEFAULTS`.
        several: which of them take a list.
        unset: name -> what no value means, for the help.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            kind, text = _SHARED[name]
            if not text.endswith("."):
                kind = Values(name, kind, several=name in several)
                text += "; several with commas." if name in several else "."
            text += f"  [default: {unset[name]}]" if name in unset else ""
            command = option(verb, f"--{name}", type=kind, help=text)(command)
        return command

    return add


def settings_option(*names: str) -> Decorator:
    """`--set KEY=VALUE` for settings that have no option of their own; it reaches the command as the dictionary `settings`."""
    return click.option(
        *("--set", "settings"),
        multiple=True,
        metavar="KEY=VALUE",
        callback=lambda _context, _option, items: settings_of(items),
        help=f"Further settings: {', '.join(names)}.",
    )


def run_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """The run that a command works on."""
    return click.argument("run", type=FOLDER, default=Path(api.RUN))(command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
images_argument = click.argument("images", metavar="PATH...", nargs=-1, required=True, type=FOLDER)
ENGINE_SETTINGS = ("streams", "spinning", "cache")


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what a command needs to run a bundle; the options reach it as `loading`, a dictionary of arguments for `Encoder.load` but `mode`."""

    @shared("bundle", "engine", "precision", "threads", "device")
    @settings_option(*ENGINE_SETTINGS)
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
    """Finds out, before anything is loaded, whether the paths of images are there.

    Args:
        paths: as they were given.
        folders: whether folders of images are taken too.

    Raises:
        click.UsageError: one is a bundle, or a folder where none is taken.
        DataError: one does not exist.
    """
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
