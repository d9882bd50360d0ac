"""Which engines and precisions can be measured on a bundle, and whether their graphs fit into memory together."""

import itertools
from collections.abc import Sequence
from pathlib import PurePosixPath

from prtool.bundle import Bundle
from prtool.engines.registry import ENGINES, graph_precision
from prtool.errors import ConfigError, PrtoolError
from prtool.graphs.signature import WEIGHTS_NAME
from prtool.records import check_value
from prtool.runtime.bench.config import BASELINE_MODE, BenchConfig
from prtool.runtime.machine import available_memory_mib
from prtool.runtime.pipeline import MODES

Pair = tuple[str, str]
"""(engine, precision)"""
Unsupported = tuple[str, str, PrtoolError]
"""(engine, precision, reason)"""


def supported(bundle: Bundle, config: BenchConfig) -> tuple[list[Pair], list[Unsupported]]:
    """The combinations of engines and precisions that the registry and the bundle support, and the others; a ConfigError where none is left."""
    known = tuple(dict.fromkeys(precision for entry in ENGINES.values() for precision in entry.precisions))
    for precision in config.precisions:
        check_value("precision", precision, choices=known)
    pairs: list[Pair] = []
    unsupported: list[Unsupported] = []
    for engine, precision in itertools.product(config.engines, config.precisions):
        try:
            _files(bundle, config, engine, precision)
            pairs.append((engine, precision))
        except ConfigError as cause:
            if engine not in ENGINES:
                raise
            unsupported.append((engine, precision, cause))
    check_any(pairs, unsupported)
    return pairs, unsupported


def check_any(pairs: Sequence[Pair], unsupported: Sequence[Unsupported]) -> None:
    """Where no pair is left, raises the reason, or a ConfigError with all of them."""
    if pairs:
        return
    if len({str(cause) for *_, cause in unsupported}) == 1:
        raise unsupported[0][2]
    raise ConfigError("nothing is left to measure: " + "; ".join(map(left_out, unsupported)))


def left_out(unsupported: Unsupported) -> str:
    """One line on a combination that is not measured, and why."""
    engine, precision, cause = unsupported
    return f"{engine}/{precision} is left out: {cause}"


def check_memory(bundle: Bundle, config: BenchConfig, pairs: Sequence[Pair]) -> None:
    """Raises ConfigError where the graphs, all loaded at the same time, need more memory than the system says is available."""
    # The largest file counts twice: an engine holds the file and its own copy while it loads.
    sizes = [bundle.manifest.files[file].size / 2**20 for engine, precision in pairs for file in _files(bundle, config, engine, precision)]
    needed, available = sum(sizes) + max(sizes), available_memory_mib()
    if available is None or needed <= available:
        return
    raise ConfigError(
        f"{len(pairs)} combinations of engine and precision with the modes {', '.join((BASELINE_MODE, *config.modes))} hold "
        f"{needed:.0f} MiB of weights at the same time, but {available:.0f} MiB of memory are available; "
        "measure fewer engines, precisions or modes in one run"
    )


def _files(bundle: Bundle, config: BenchConfig, engine: str, precision: str) -> list[str]:
    """The graphs and weights of every mode; raises ConfigError where the engine lacks the precision, or the bundle a graph."""
    held, found = graph_precision(engine, precision), []
    for mode in (BASELINE_MODE, *config.modes):
        graphs = [bundle.graph(role, held).file for role in MODES[mode].roles(bundle.manifest.prune)]
        weights = {str(PurePosixPath(graph).with_name(WEIGHTS_NAME)) for graph in graphs}
        found += [*graphs, *(weights & bundle.manifest.files.keys())]
    return found
