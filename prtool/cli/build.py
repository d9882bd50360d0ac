"""The commands about engines that are built ahead: build them, list them, clear them."""

from pathlib import Path
from typing import Any

import click

from prtool.cli.parameters import KeepList, bundle_argument, cache_option, json_option, precision_option, settings_of


@click.command()
@bundle_argument
@click.option("--engine", required=True, help="Engine that builds ahead: trt or trt-rtx.")
@precision_option
@click.option("--batch", default="1:8:32", show_default=True, help="Images a call: LEAST:USUAL:MOST, or one number.")
@click.option(
    "--static-keep", "keeps", type=KeepList(), default=(), help="A narrow, quicker profile for each of these keeps.  [default: every count]"
)
@click.option("--level", type=click.IntRange(0, 5), default=3, show_default=True, help="Optimisation: 0 builds fast, 5 runs fast.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="workspace_mib, timing_cache, strip_weights, version_compatible, ...")
@cache_option
@click.option("--rebuild", is_flag=True, help="Build also what is in the cache.")
@json_option
def build(bundle: Path, engine: str, precision: str, cache: Path | None, rebuild: bool, as_json: bool, **asked: Any) -> None:  # noqa: ANN401 - as click hands them over
    """Build engine files for this machine's GPU; other commands with the same engine then take them."""
    from prtool.bundle import Bundle
    from prtool.cli.console import BarProgress, message, result_json, result_table
    from prtool.engines.base import EngineOptions
    from prtool.engines.registry import builder
    from prtool.runtime.build import build_bundle, build_options

    builder(engine)
    opened = Bundle.open(bundle)
    options = build_options(opened.manifest, asked["batch"], asked["keeps"], {"level": asked["level"], **settings_of(asked["settings"])})
    report = build_bundle(opened, engine, precision, EngineOptions(cache=cache, build=options), BarProgress(), rebuild=rebuild)
    if as_json:
        result_json(report.to_json())
    else:
        result_table(*report.table())
    message(f"{report.library} {report.version}, {report.precision}, for {report.target}; {report.state}")


@click.group(name="engine-cache")
def engine_cache() -> None:
    """Built engines on disk: list them, clear them."""


@engine_cache.command(name="list")
@cache_option
@json_option
def list_engines(cache: Path | None, as_json: bool) -> None:
    """Every built engine with its size, the one used last first."""
    from prtool.cli.console import message, result_json, result_table
    from prtool.engines.cache.store import EngineCache
    from prtool.engines.cache.view import CacheView

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
    from prtool.cli.console import message
    from prtool.engines.cache.store import EngineCache
    from prtool.engines.cache.view import ClearRequest, clear

    done = clear(EngineCache(cache), ClearRequest(digests, days, max_mib, everything))
    for digest in done.busy:
        message(f"kept {digest}: it is being built")
    message(f"removed {len(done.removed)} engines")
