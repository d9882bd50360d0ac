"""Benchmark of a bundle over engines, precisions, batches and keep rates: pruned and unpruned in one interleaved run.

::

    report = bench("bundle", BenchConfig(engines=("ort", "openvino"), batches=(1, 8), keeps=(1.0, 0.6), threads=2))
    report.to_json(), report.table(), report.notes
"""

from prtool.runtime.bench.config import BenchConfig
from prtool.runtime.bench.report import BenchReport, BenchRow
from prtool.runtime.bench.run import bench

__all__ = ["BenchConfig", "BenchReport", "BenchRow", "bench"]
