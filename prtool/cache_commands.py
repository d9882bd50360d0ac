"""The commands about built engines on disk."""

from pathlib import Path

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
cache_option = click.option(
    "--engine-cache", "cache", type=click.Path(path_type=Path), help="Folder of built engines.  [default: in the user's cache folder]"
)


@click.group(name="engine-cache")
def engine_cache() -> None:
    """Built engines on disk: list them, clear them."""


@engine_cache.command(name="list")
@cache_option
@json_option
def list_engines(cache: Path | None, as_json: bool) -> None:
    """Every built engine with its size, the one used last first."""
    from prtool.console import message, result_json, result_table
    from prtool.engines.cache import EngineCache
    from prtool.engines.cache_view import CacheView

    view = CacheView.of(EngineCache(cache))
    if as_json:
        result_json(view.to_json())
        return
    result_table(*view.table())
    message(f"{view.root}: {len(view.rows)} engines, {view.mib:.1f} MiB")


@engine_cache.command(name="clear")
@click.argument("digests", metavar="[ID]...", nargs=-1)
@click.option("--older-than", "days", type=click.FloatRange(0), help="Engines not used for this many days.")
@click.option("--max-mib", type=click.FloatRange(0), help="Engines used longest ago, until the others take at most this many MiB.")
@click.option("--all", "everything", is_flag=True, help="Every engine, and what the builders measured.")
@cache_option
def clear_engines(digests: tuple[str, ...], days: float | None, max_mib: float | None, everything: bool, cache: Path | None) -> None:
    """Remove built engines by id, age or size, or all; those that are being built stay."""
    from prtool.console import message
    from prtool.engines.cache import EngineCache
    from prtool.engines.cache_view import ClearRequest, clear

    done = clear(EngineCache(cache), ClearRequest(digests, days, max_mib, everything))
    for digest in done.busy:
        message(f"kept {digest}: it is being built")
    message(f"removed {len(done.removed)} engines")
