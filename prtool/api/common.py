"""What the verbs share: the kinds of their arguments, configurations made from these and from `--set`, and their reports."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from prtool.errors import ConfigError
from prtool.records import check_name, from_plain
from prtool.spec import Keep
from prtool.text_safety import printable

if TYPE_CHECKING:
    from prtool.export.run import RunAgreement
    from prtool.manifest import Manifest
    from prtool.runtime.verify import VerifyReport
    from prtool.trainer.runs.checkpoint import Checkpoint

AnyPath = str | Path
AnyKeep = Keep | float | int
Config = TypeVar("Config")
Cells = tuple[list[str], list[list[str]]]

RUN, BUNDLE, CONFIG = "runs/latest", "bundle", "prtool.toml"
"""Where the verbs look, and write, in a project folder."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """A trained run: its folder, and the checkpoint in it."""

    run: Path
    checkpoint: "Checkpoint"

    def to_json(self) -> dict[str, Any]:
        """The main figures as plain JSON values."""
        made = self.checkpoint
        facts = {"model": made.model, "pretrained": made.pretrained, "image_size": made.image_size, "method": made.prune.method}
        facts |= {"locations": made.prune.locations, "scorer_trained": made.scorer_trained}
        return {"run": str(self.run), **facts, **dataclasses.asdict(made.metrics)}

    def table(self) -> Cells:
        """Matching rates on the validation images; no rows without a golden ranking."""
        rows = [[str(row.m), f"{row.predictor:.3f}", f"{row.random:.3f}", f"{row.constant:.3f}"] for row in self.checkpoint.metrics.matching]
        return ["matching rate @m", "predictor", "random", "constant"], rows


@dataclass(frozen=True, slots=True)
class ExportReport:
    """A written bundle: its folder, its manifest, and how each reduced precision was judged on real images."""

    bundle: Path
    manifest: "Manifest"
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The main figures as plain JSON values."""
        manifest = self.manifest
        facts = {"default_keep": manifest.default_keep, "precisions": list(manifest.graphs), "parity": dict(manifest.parity)}
        return {"bundle": str(self.bundle), **facts, "notes": list(self.notes)}

    def table(self) -> Cells:
        """The worst figures of the comparison with PyTorch."""
        return ["compared with PyTorch", "worst"], [[name, f"{value:.9g}"] for name, value in self.manifest.parity.items()]


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """An engine compared with PyTorch.

    Attributes:
        probe: on the bundle's recorded images.
        images: on images of a data folder, with the run's model; None where no data were given.
    """

    probe: "VerifyReport"
    images: "RunAgreement | None" = None

    def to_json(self) -> dict[str, Any]:
        """Both comparisons as plain JSON values."""
        return {"probe": self.probe.to_json(), "images": None if self.images is None else self.images.to_json()}


def several(value: Any) -> tuple[Any, ...]:  # noqa: ANN401 - one value, or some
    """One value or several as a tuple."""
    return (value,) if isinstance(value, (str, int, float, Keep)) else tuple(value)


def keeps_of(value: AnyKeep | Sequence[AnyKeep]) -> tuple[Keep, ...]:
    """One keep or several as a tuple of `Keep`."""
    return tuple(Keep.of(each) for each in several(value))


def configure(kind: type[Config], given: Mapping[str, Any], settings: Mapping[str, object] | None = None, where: str = "") -> Config:
    """A configuration: `given` by field, then `settings`, dotted names such as "build.level" with plain values, which are read strictly.

    Raises:
        ConfigError: there is no such field, named after `where`, or a value is of the wrong type or out of range.
    """
    hints = get_type_hints(kind)
    values, sections = dict(given), dict[str, dict[str, object]]()
    for name, value in (settings or {}).items():
        head, _, rest = name.partition(".")
        full = f"{where}.{name}" if where else name
        check_name(head, hints, where)
        if rest and not dataclasses.is_dataclass(hints[head]):
            raise ConfigError(f"unknown name {printable(repr(full))}: {head} has no settings of its own")
        if rest:
            sections.setdefault(head, {})[rest] = value
        else:
            is_path = Path in get_args(hints[head]) and isinstance(value, (str, Path))
            values[head] = Path(str(value)) if is_path else from_plain(hints[head], value, full)
    for name, inner in sections.items():
        base = {item.name: getattr(values[name], item.name) for item in dataclasses.fields(hints[name])} if name in values else {}
        values[name] = configure(hints[name], base, inner, f"{where}.{name}" if where else name)
    return kind(**values)
