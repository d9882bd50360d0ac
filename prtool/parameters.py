"""What the commands share: kinds of values, options, and the choice of an engine."""

import functools
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prtool.errors import PrtoolError
from prtool.spec import Keep
from prtool.strict import parse_toml
from prtool.text_safety import printable

if TYPE_CHECKING:
    from prtool.engines.base import EngineOptions
    from prtool.runtime.encoder import Encoder

Command = Callable[..., None]


class KeepList(click.ParamType[tuple[Keep, ...]]):
    """A comma-separated list of keep ratios (0.6) or counts (118)."""

    name = "keep"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Keep, ...]:  # noqa: ANN401 - as click declares
        """Text to Keeps; defaults pass through."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(Keep.parse(part) for part in str(value).split(","))
        except PrtoolError as cause:
            self.fail(str(cause), param, ctx)


class Names(click.ParamType[tuple[str, ...]]):
    """A comma-separated list of words, each one of a fixed set where one is given."""

    name = "names"

    def __init__(self, *known: str) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:  # noqa: ANN401
        """Text to words."""
        words = value if isinstance(value, tuple) else tuple(part.strip() for part in str(value).split(","))
        for word in words:
            if self.known and word not in self.known:
                self.fail(f"{word!r} is not one of {', '.join(self.known)}", param, ctx)
        return words


class Counts(click.ParamType[tuple[int, ...]]):
    """A comma-separated list of whole numbers above 0."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:  # noqa: ANN401
        """Text to numbers."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a list of whole numbers above 0, such as 1,8", param, ctx)
        return tuple(int(part) for part in parts)


engine_option = click.option("--engine", default="ort", show_default=True, help="What runs the graphs; 'prtool doctor' lists them.")
precision_option = click.option("--precision", default="fp32", show_default=True, help="Arithmetic: fp32, fp16, bf16 or int8, as the engine has it.")
keep_option = click.option("--keep", type=KeepList(), default=None, help="Patches kept: a ratio (0.6) or a count (118). [default: the bundle's]")
run_argument = click.argument("run", type=click.Path(path_type=Path), default=Path("runs/latest"))
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path), default=Path("bundle"))
paths_argument = click.argument("paths", metavar="[BUNDLE] PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
cache_option = click.option(
    "--engine-cache", "cache", type=click.Path(path_type=Path), help="Folder of built engines.  [default: in the user's cache folder]"
)


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What runs the graphs: an engine of the registry, its precision, and the folder of built engines (None: the user's)."""

    engine: str
    precision: str
    cache: Path | None

    def options(self, *, spinning: bool = True) -> "EngineOptions":
        """How the engine runs."""
        from prtool.engines.base import EngineOptions

        return EngineOptions(cache=self.cache, spinning=spinning)

    def load(self, bundle: Path) -> "Encoder":
        """The bundle's encoder; raises what `Encoder.load` raises."""
        from prtool.runtime.encoder import Encoder

        return Encoder.load(bundle, engine=self.engine, precision=self.precision, options=self.options())


def engine_options(command: Command) -> Command:
    """Adds --engine, --precision and --engine-cache, which reach the command as `choice`."""

    @engine_option
    @precision_option
    @cache_option
    @functools.wraps(command)
    def run(*arguments: Any, engine: str, precision: str, cache: Path | None, **others: Any) -> None:  # noqa: ANN401 - as click hands them over
        command(*arguments, choice=EngineChoice(engine, precision, cache), **others)

    return run


def settings_of(items: tuple[str, ...]) -> dict[str, object]:
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


def only(keeps: tuple[Keep, ...]) -> Keep:
    """The one keep of a command that takes one."""
    if len(keeps) != 1:
        raise click.UsageError(f"--keep takes one value here, but {len(keeps)} were given")
    return keeps[0]
