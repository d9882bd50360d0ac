"""What the commands share: kinds of values, options, and the choice of an engine."""

import functools
import os
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prtool.errors import DataError, PrtoolError
from prtool.spec import Keep
from prtool.strict import parse_toml
from prtool.text_safety import printable

if TYPE_CHECKING:
    from prtool.bundle import Bundle
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


class OneKeep(click.ParamType[Keep]):
    """One keep ratio (0.6) or count (118)."""

    name = "keep"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Keep:  # noqa: ANN401
        """Text to a Keep."""
        if isinstance(value, Keep):
            return value
        try:
            return Keep.parse(str(value))
        except PrtoolError as cause:
            self.fail(f"{cause}; give one value", param, ctx)


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
keep_option = click.option("--keep", type=OneKeep(), default=None, help="Patches kept: a ratio (0.6) or a count (118). [default: the bundle's]")
run_argument = click.argument("run", type=click.Path(path_type=Path), default=Path("runs/latest"))
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path), default=Path("bundle"))
bundle_option = click.option("--bundle", type=click.Path(path_type=Path), default=Path("bundle"), show_default=True, help="Bundle folder.")
images_argument = click.argument("images", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
mode_option = click.option(
    "--mode", type=click.Choice(["fused", "split", "full"]), default="fused", show_default=True, help="One graph, two, or the unpruned encoder."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
cache_option = click.option(
    "--engine-cache", "cache", type=click.Path(path_type=Path), help="Folder of built engines.  [default: in the user's cache folder]"
)


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What runs the graphs: an engine of the registry, its precision and mode, and the folder of built engines (None: the user's)."""

    engine: str
    precision: str
    cache: Path | None
    mode: str

    def options(self, *, spinning: bool = True) -> "EngineOptions":
        """How the engine runs."""
        from prtool.engines.base import EngineOptions

        return EngineOptions(cache=self.cache, spinning=spinning)

    def open(self, bundle: Path) -> "Bundle":
        """Opens a bundle, and checks that it and the engine have the precision, before an engine's library is imported.

        Raises:
            BundleError: it is no bundle, or damaged.
            ConfigError: there is no such engine, or it or the bundle lacks the precision.
        """
        from prtool.bundle import Bundle
        from prtool.engines.registry import graph_precision

        precision = graph_precision(self.engine, self.precision)
        opened = Bundle.open(bundle)
        opened.graph("full", precision)
        return opened

    def counts(self, bundle: "Bundle", keep: Keep | None) -> tuple[int, ...]:
        """The patches that a call keeps at each location: those of `keep`, or what bundle and mode keep by default.

        Raises:
            KeepError: the bundle does not allow it, or the mode drops nothing.
        """
        from prtool.runtime.encoder import mode_counts

        return mode_counts(bundle.manifest, self.mode, keep)

    def load(self, bundle: "Bundle") -> "Encoder":
        """The bundle's encoder; raises what `Encoder.load` raises."""
        from prtool.runtime.encoder import Encoder

        return Encoder.load(bundle, engine=self.engine, mode=self.mode, precision=self.precision, options=self.options())


def engine_options(command: Command) -> Command:
    """Adds --engine, --precision and --engine-cache, which reach the command as `choice`; with a --mode, where the command has one."""

    @engine_option
    @precision_option
    @cache_option
    @functools.wraps(command)
    def run(*arguments: Any, engine: str, precision: str, cache: Path | None, mode: str = "fused", **others: Any) -> None:  # noqa: ANN401
        command(*arguments, choice=EngineChoice(engine, precision, cache, mode), **others)

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
