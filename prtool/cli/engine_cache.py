"""The commands about built engines on disk: list them, clear them."""

from pathlib import Path

import click

from prtool.cli.console import counted, message, print_report, result_json
from prtool.cli.parameters import FOLDER, json_option

_cache = click.option("--engine-cache", "cache", type=FOLDER, help="Folder of built engines.  [default: in the user's cache folder]")


@click.group(name="engine-cache")
def engine_cache() -> None:
    """Built engines on disk: list them, clear them."""


@engine_cache.command(name="list")
@_cache
@json_option
def list_built(cache: Path | None, as_json: bool) -> None:
    """Every built engine with its size, the one used last first."""
    from prtool.engines.cache.store import EngineCache
    from prtool.engines.cache.view import CacheView

    found = EngineCache(cache)
    view = CacheView(found.root, tuple(found.entries()))
    print_report(view, as_json)
    message(f"{view.root}: {counted(len(view.rows), 'engine')}, {view.mib:.1f} MiB")


@engine_cache.command(name="clear")
@click.argument("digests", metavar="[ID]...", nargs=-1)
@click.option("--older-than", "days", type=click.FloatRange(0), help="Engines not used for this many days.")
@click.option("--max-mib", type=click.FloatRange(0), help="Engines used longest ago, until the others take at most this many MiB.")
@click.option("--all", "everything", is_flag=True, help="Every engine, and what the builders measured.")
@_cache
@json_option
def clear_built(digests: tuple[str, ...], days: float | None, max_mib: float | None, everything: bool, cache: Path | None, as_json: bool) -> None:
    """Remove built engines by id, age or size, or all; those that are being built stay."""
    from prtool.engines.cache.store import EngineCache
    from prtool.engines.cache.view import clear

    done = clear(EngineCache(cache), digests, days=days, max_mib=max_mib, everything=everything)
    if as_json:
        result_json({"removed": list(done.removed), "busy": list(done.busy)})
    for digest in done.busy:
        message(f"kept {digest}: it is being built")
    message(f"removed {counted(len(done.removed), 'engine')}")
