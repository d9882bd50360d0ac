"""Which engines and precisions can be measured on a bundle, and whether their graphs fit into memory together."""

from collections.abc import Sequence
from dataclasses import dataclass

from prtool.bundle import Bundle
from prtool.engines.registry import ENGINES, graph_precision
from prtool.errors import ConfigError, PrtoolError
from prtool.runtime.bench.config import BASELINE_MODE, BenchConfig
from prtool.runtime.machine import available_memory_mib
from prtool.runtime.pipeline import MODES


@dataclass(frozen=True, slots=True)
class Offer:
    """One engine computing in one precision."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine}/{self.precision}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An offer that was asked for and cannot be had, and why."""

    offer: Offer
    cause: PrtoolError

    def __str__(self) -> str:
        return f"{self.offer} is left out: {self.cause}"


def asked_offers(bundle: Bundle, config: BenchConfig) -> tuple[list[Offer], list[Refusal]]:
    """Every combination of engines and precisions: those that the registry and the bundle have, and the others.

    Raises:
        ConfigError: an engine's or precision's name is unknown; or, where nothing is left, the reasons.
    """
    _check_precisions(config)
    offers: list[Offer] = []
    refusals: list[Refusal] = []
    for engine in config.engines:
        for precision in config.precisions:
            offer = Offer(engine, precision)
            try:
                _check(bundle, config, offer)
                offers.append(offer)
            except ConfigError as cause:
                if engine not in ENGINES:
                    raise
                refusals.append(Refusal(offer, cause))
    check_any(offers, refusals)
    return offers, refusals


def check_any(offers: Sequence[Offer], refusals: Sequence[Refusal]) -> None:
    """Where no offer is left, raises the reason, or a ConfigError with all of them."""
    if offers:
        return
    if len({str(refusal.cause) for refusal in refusals}) == 1:
        raise refusals[0].cause
    raise ConfigError("nothing is left to measure: " + "; ".join(map(str, refusals)))


def check_memory(bundle: Bundle, config: BenchConfig, offers: Sequence[Offer]) -> None:
    """Compares what the graphs need, all loaded at the same time, with the memory that is available.

    The estimate is the size of each graph on disk, once for each offer, and the largest a second time, because an
    engine holds the file and its own copy while it loads. Where the system does not say what is available, nothing
    is compared.

    Raises:
        ConfigError: they do not fit.
    """
    graphs = [(offer, file) for offer in offers for file in _files(bundle, config, offer)]
    sizes = [bundle.manifest.files[file].size / 2**20 for _, file in graphs]
    needed, available = sum(sizes) + max(sizes), available_memory_mib()
    if available is None or needed <= available:
        return
    raise ConfigError(
        f"{len(offers)} combinations of engine and precision with the modes {', '.join((BASELINE_MODE, *config.modes))} hold "
        f"{needed:.0f} MiB of weights at the same time, but {available:.0f} MiB of memory are available; "
        "measure fewer engines, precisions or modes in one run"
    )


def _check_precisions(config: BenchConfig) -> None:
    known = list(dict.fromkeys(precision for entry in ENGINES.values() for precision in entry.precisions))
    for precision in config.precisions:
        if precision not in known:
            raise ConfigError(f"precision = {precision!r}, but engines compute in {', '.join(known)}")


def _check(bundle: Bundle, config: BenchConfig, offer: Offer) -> None:
    """Raises ConfigError when the engine lacks the precision, or the bundle a graph for it."""
    for role in _roles(bundle, config):
        bundle.graph(role, graph_precision(offer.engine, offer.precision))


def _roles(bundle: Bundle, config: BenchConfig) -> list[str]:
    return [role for mode in (BASELINE_MODE, *config.modes) for role in MODES[mode].roles(bundle.manifest.prune)]


def _files(bundle: Bundle, config: BenchConfig, offer: Offer) -> list[str]:
    """The graphs of an offer and the files of weights beside them."""
    precision = graph_precision(offer.engine, offer.precision)
    graphs = [bundle.graph(role, precision).file for role in _roles(bundle, config)]
    return [name for graph in graphs for name in (graph, f"{graph}.data") if name in bundle.manifest.files]
