"""Many threads on one encoder for a long time: every result bit-equal to that of one thread, and memory and open files that stay flat.

python -m benchmarks.soak bundle --engine ort,openvino --seconds 900

Each call has a random batch, keep and mode; its expected result was computed before, by the same encoders in one thread.
"""

import functools
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

from benchmarks.common import NAMES, Script
from prtool.bundle import Bundle
from prtool.engines.base import Array, EngineOptions
from prtool.errors import EngineError
from prtool.runtime.encoder import Encoder
from prtool.runtime.pipeline import modes_of
from prtool.spec import Keep

_CASES = 60
_MAX_IMAGES = 16
_ROUNDS = 3
_WARM_S = 60.0
"""Memory is compared with what it was after this time, or after half of a shorter run."""
_GROWTH = 0.1
_GROWTH_MIB = 16.0


Result = Array | tuple[Array, ...]
"""Embeddings, or the kept patches of each location."""


@dataclass(frozen=True, slots=True)
class Case:
    """One call and the result of one thread."""

    name: str
    call: Callable[[], Result]
    expected: Result


@dataclass(frozen=True, slots=True)
class Sample:
    """The process at one moment: seconds since the start, calls so far, resident memory in MiB, open files and threads."""

    seconds: float
    calls: int
    memory_mib: float
    files: int
    threads: int


@dataclass(slots=True)
class Soak:
    """The result of one run."""

    samples: list[Sample] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def problems(self, warm_s: float) -> list[str]:
        """What is not as it must be, one line each."""
        found = list(self.wrong)
        warm = next((sample for sample in self.samples if sample.seconds >= warm_s), self.samples[-1])
        last = self.samples[-1]
        most = warm.memory_mib * (1.0 + _GROWTH) + _GROWTH_MIB
        if last.memory_mib > most:
            found.append(f"resident memory grew from {warm.memory_mib:.0f} MiB at {warm.seconds:.0f} s to {last.memory_mib:.0f} MiB")
        if last.files > warm.files:
            found.append(f"open files grew from {warm.files} at {warm.seconds:.0f} s to {last.files}")
        return found


def make_cases(encoders: dict[str, Encoder], seed: int) -> list[Case]:
    """Random calls over every mode, with the results of one thread; the same ones for the same seed."""
    choice, rng = random.Random(seed), np.random.default_rng(seed)
    manifest = next(iter(encoders.values())).manifest
    low, high = manifest.keep_range
    sizes = sorted({manifest.preprocess.size, manifest.native_size})
    images = {size: rng.standard_normal((_MAX_IMAGES, 3, *size)).astype(np.float32) for size in sizes}
    cases = []
    for number in range(_CASES):
        mode, batch = choice.choice(list(encoders)), choice.randint(1, _MAX_IMAGES)
        keep = None if mode == "full" else choice.randint(low, high)
        ranks = number % 6 == 5 and "split" in encoders
        # Kept patches are those of the pruned encoder, whatever the mode.
        way, size = (encoders[mode].kept, manifest.preprocess.size) if ranks else (encoders[mode].encode_pixels, encoders[mode].preprocess.size)
        call = functools.partial(way, images[size][choice.sample(range(_MAX_IMAGES), batch)], None if keep is None else Keep.count(keep))
        cases.append(Case(f"{way.__name__} of {batch} images, {mode}, k = {keep or 'default'}", call, call()))
    return cases


def _same(found: Result, expected: Result) -> bool:
    """Whether embeddings, or the kept patches of each location, are the same to the bit."""
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    return all(one.shape == other.shape and one.tobytes() == other.tobytes() for one, other in pairs)


def run(cases: Sequence[Case], threads: int, seconds: float, show: Callable[[Sample], None]) -> Soak:
    """Calls the cases from many threads until the time is over, in orders of their own, and looks at the process each second."""
    soak, calls, ends, started = Soak(), [0] * threads, threading.Event(), time.monotonic()

    def work(number: int) -> None:
        choice = random.Random(number)
        for turn in itertools.count():
            if ends.is_set():
                return
            # In the first rounds all threads run the same call at once: the allocators then have their peaks behind them.
            case = cases[turn % len(cases)] if turn < _ROUNDS * len(cases) else choice.choice(cases)
            try:
                found = case.call()
            except EngineError as failure:
                soak.wrong.append(f"{case.name}: {failure}")
                return
            calls[number] += 1
            if not _same(found, case.expected):
                soak.wrong.append(f"{case.name}: the result differs from that of one thread")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    while (spent := time.monotonic() - started) < seconds and not soak.wrong:
        soak.samples.append(_sample(spent, sum(calls)))
        if len(soak.samples) % 10 == 1:
            show(soak.samples[-1])
        time.sleep(min(1.0, seconds - spent))
    ends.set()
    for worker in workers:
        worker.join()
    soak.samples.append(_sample(time.monotonic() - started, sum(calls)))
    show(soak.samples[-1])
    return soak


def _sample(seconds: float, calls: int) -> Sample:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(list(Path("/proc/self/fd").iterdir()))
    return Sample(seconds, calls, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files, threading.active_count())


@click.command(cls=Script)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--engine", "engines", type=NAMES, default="ort,openvino", show_default=True, help="Engines, one after the other.")
@click.option("--seconds", default=900.0, show_default=True, help="For each engine.")
@click.option("--callers", default=8, show_default=True, help="Threads that call at once.")
@click.option("--threads", default=0, help="CPU threads of one call; 0 takes all that are granted.  [default: 0]")
@click.option("--seed", default=0, show_default=True, help="Of the calls.")
def main(bundle: Path, engines: tuple[str, ...], seconds: float, callers: int, threads: int, seed: int) -> None:
    """Soaks the encoders of BUNDLE; exit status 1 where a result differs or memory or open files grow."""
    opened = Bundle.open(bundle)
    for engine in engines:
        with ExitStack() as stack:
            options = EngineOptions(threads=threads)
            modes = modes_of(opened.manifest.prune)
            encoders = {mode: stack.enter_context(Encoder.load(opened, engine=engine, mode=mode, options=options)) for mode in modes}
            info = encoders["fused"].info
            print(f"{info.name} {info.version}, {info.device}; {callers} threads call")
            result = run(make_cases(encoders, seed), callers, seconds, _show)
        if problems := result.problems(min(_WARM_S, seconds / 2)):
            raise EngineError(f"{engine}: {'; '.join(problems[:5])}")
        print(f"{engine}: {result.samples[-1].calls} calls, every result equal to that of one thread\n")


def _show(sample: Sample) -> None:
    print(
        f"{sample.seconds:6.0f} s {sample.calls:8d} calls {sample.memory_mib:8.1f} MiB {sample.files:4d} files {sample.threads:4d} threads",
        flush=True,
    )


if __name__ == "__main__":
    main()
