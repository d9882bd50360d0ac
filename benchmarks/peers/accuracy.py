"""The accuracy file: how accurate each method, precision and keep rate is, to be put next to its speed.

The file is JSON: a list of entries, or an object whose "rows" is that list and whose "model" and "data" say what was
measured. An entry is

    {"method": "patch-ranking", "engine": "openvino", "precision": "bf16", "keep": 0.6,
     "accuracy": {"caltech101": 94.0, "oxford_pets": 81.9}, "mean": 87.9}

`method` is "unpruned", "patch-ranking" or "tome"; `engine` is a name of the registry, "torch" for PyTorch itself, or "any" for
all that have no entry of their own; `keep` is the share of patches, 1.0 for "unpruned"; `accuracy` is in percent for each
data set, and `mean` their mean. Points are counted from ("unpruned", "fp32"), which the file must have; PyTorch in fp32, which
every export is validated against, has that accuracy unless it has an entry of its own.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prtool.errors import DataError

UNPRUNED, PRUNED, MERGED = "unpruned", "patch-ranking", "tome"
METHODS = (UNPRUNED, PRUNED, MERGED)
ANY = "any"
Key = tuple[str, str, str, float]


@dataclass(frozen=True, slots=True)
class Accuracies:
    """Mean accuracy in percent of each (method, engine, precision, keep); `about` says of what model and data."""

    means: dict[Key, float]
    about: str

    @classmethod
    def load(cls, path: Path) -> "Accuracies":
        """Reads the file.

        Raises:
            DataError: it cannot be read, an entry is not as described, or the unpruned fp32 accuracy is missing.
        """
        try:
            value = json.loads(path.read_text())
        except (OSError, ValueError) as cause:
            raise DataError(f"{path} cannot be read as JSON: {cause}; give a file that 'python -m benchmarks.accuracy' wrote") from cause
        entries = value.get("rows") if isinstance(value, dict) else value
        if not isinstance(entries, list):
            raise DataError(f"{path} holds no list of accuracies; give a list, or an object with 'rows'")
        means = dict(_entry(path, entry) for entry in entries)
        about = ", ".join(str(value[name]) for name in ("model", "data") if name in value) if isinstance(value, dict) else ""
        if not any(key[0] == UNPRUNED and key[2] == "fp32" for key in means):
            raise DataError(f"{path} has no entry with method 'unpruned' and precision 'fp32', from which points are counted; measure it too")
        return cls(means, about)

    @property
    def reference(self) -> float:
        """Percent of the unpruned encoder in fp32; the mean over the engines that have it."""
        found = [mean for (method, _, precision, _), mean in self.means.items() if (method, precision) == (UNPRUNED, "fp32")]
        return sum(found) / len(found)

    def of(self, method: str, engine: str, precision: str, keep: float) -> float | None:
        """Percent; None where the file does not say. In fp32 any engine's figure stands for all: each is validated against PyTorch."""
        others = sorted({name for _, name, _, _ in self.means}) if precision == "fp32" and method != MERGED else []
        for name in (engine, ANY, *others):
            found = self.means.get((method, name, precision, _rounded(keep)))
            if found is not None:
                return found
        return None


def _entry(path: Path, entry: Any) -> tuple[Key, float]:
    try:
        key = (str(entry["method"]), str(entry["engine"]), str(entry["precision"]), _rounded(float(entry["keep"])))
        mean = float(entry["mean"])
    except (KeyError, TypeError, ValueError) as cause:
        raise DataError(f"{path}: {entry!r:.120} is no accuracy ({cause!r}); give method, engine, precision, keep and mean") from cause
    if key[0] not in METHODS or not (math.isfinite(mean) and 0.0 <= mean <= 100.0):
        raise DataError(f"{path}: {entry!r:.120} must have a method of {', '.join(METHODS)} and a mean of 0 to 100 percent")
    return key, mean


def _rounded(keep: float) -> float:
    # A count of patches gives 0.602 where 0.6 was asked for.
    return round(keep, 2)
