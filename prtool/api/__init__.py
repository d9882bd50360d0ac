"""The verbs as functions: each has the name, the parameters and the defaults of its command, which parses, calls it and prints; and `apply`.

Arguments are checked before PyTorch or an engine's library is imported. Paths may be `str` or `Path`; a `keep` is a ratio (0.6),
a count (118) or a `Keep`; where several values make sense, one value may stand alone. `settings` are those of `--set`: dotted
names and plain values, which win over arguments. `progress` gets each stage; None reports to nobody.
"""

from prtool.api.bundle import benchmark, build, checked_bundle, engine_options, verify
from prtool.api.common import BUNDLE, RUN, ExportReport, TrainReport, VerifyResult
from prtool.api.layout import write_layout
from prtool.api.run import apply, evaluate, evaluation_picture, export_bundle, train, train_config, tune

__all__ = ["BUNDLE", "RUN", "ExportReport", "TrainReport", "VerifyResult", "checked_bundle", "engine_options", "evaluation_picture", "train_config"]
__all__ += ["apply", "benchmark", "build", "evaluate", "export_bundle", "train", "tune", "verify", "write_layout"]
