"""Readers of the known sets' own layouts: CoOp's split files first, then the lists that torchvision's downloads bring."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from prtool.errors import DataError
from prtool.runtime.images.files import folder_names
from prtool.strict import parse_json, read_regular
from prtool.text_safety import printable
from prtool.trainer.data.formats.folders import class_images, read_class_folders, read_split_file
from prtool.trainer.data.formats.known import KNOWN, KnownSet
from prtool.trainer.data.formats.text_files import read_lines
from prtool.trainer.data.images import SPLITS
from prtool.trainer.data.listing import Entry, Listing, hashed_split, joined

_MAX_BYTES = 1 << 28
_NOT_COOPS = "these are not CoOp's splits, so figures differ from published ones"
_VAL_NOTE = f"train and val are 80/20 of the set's own trainval list, by a hash of each image's path; {_NOT_COOPS}, but test is the same"
_OFFICIAL_NOTE = f"the set's own split lists; {_NOT_COOPS}"


@dataclass(frozen=True, slots=True)
class Layout:
    """One form in which a known set lies on disk.

    Attributes:
        markers: files and folders, relative to the home, that tell this layout.
        read: reads the home of a set.
    """

    markers: tuple[str, ...]
    read: Callable[[Path, KnownSet], Listing]

    def is_at(self, home: Path) -> bool:
        """Whether every marker exists."""
        return all((home / marker).exists() for marker in self.markers)


def find_layout(known: KnownSet, folder: Path) -> tuple[Path, Layout] | None:
    """The home and layout of a set: in `folder` itself, or in its usual place in a folder of data sets."""
    for home in (folder, *(folder / name for name in known.homes)):
        for layout in LAYOUTS[known.name]:
            if layout.is_at(home):
                return home, layout
    return None


def recognise(folder: Path) -> KnownSet | None:
    """The known set whose layout lies directly in a folder, told by its marker files."""
    for known in KNOWN.values():
        if any(layout.is_at(folder) for layout in LAYOUTS[known.name] if layout.markers not in _COMMON):
            return known
    return None


def _coop(known: KnownSet) -> Layout:
    return Layout((known.split_file,), lambda home, item: read_split_file(home, home / item.split_file, item.images))


def _class_folders(home: Path, known: KnownSet) -> Listing:
    folders = [name for name in folder_names(home / known.images) if name not in known.ignored]
    if len(folders) != known.classes:
        raise DataError(
            f"{home / known.images} has {len(folders)} class folders, but {known.name} has {known.classes}: it is not whole; {known.explain(home)}"
        )
    found = read_class_folders(home, known.images, known.rename, known.ignored)
    return Listing(home, found.classnames, found.splits, joined(found.note, f"{_NOT_COOPS}: put {known.split_file} next to the images for those"))


def _aircraft(home: Path, known: KnownSet) -> Listing:
    classnames = tuple(read_lines(home / "variants.txt"))
    label_of = {name: label for label, name in enumerate(classnames)}
    splits = {}
    for split in SPLITS:
        file = home / f"images_variant_{split}.txt"
        with _form(file, "lines of image number and variant, the variant one of variants.txt"):
            pairs = [line.split(" ", 1) for line in read_lines(file)]
            splits[split] = [(f"{known.images}/{image}.jpg", label_of[variant]) for image, variant in pairs]
    return Listing(home, classnames, splits)


def _dtd(home: Path, known: KnownSet) -> Listing:
    lists = {split: read_lines(home / "labels" / f"{split}1.txt") for split in SPLITS}
    classnames = tuple(sorted({line.split("/")[0] for part in lists.values() for line in part}))
    label_of = {name: label for label, name in enumerate(classnames)}
    splits = {split: [(f"{known.images}/{line}", label_of[line.split("/")[0]]) for line in part] for split, part in lists.items()}
    return Listing(home, classnames, splits, f"split 1 of the set's ten; {_OFFICIAL_NOTE}")


def _food(home: Path, known: KnownSet) -> Listing:
    found: dict[str, dict[str, list[str]]] = {}
    for split in ("train", "test"):
        file = home / "meta" / f"{split}.json"
        with _form(file, "{class: [class/number, ...]}"):
            found[split] = {str(name): [str(path) for path in paths] for name, paths in parse_json(read_regular(file, _MAX_BYTES)).items()}
    classnames = tuple(sorted(found["train"]))
    label_of = {name: label for label, name in enumerate(classnames)}
    with _form(home / "meta" / "test.json", "the classes of train.json"):
        splits = {
            split: [(f"{known.images}/{path}.jpg", label_of[name]) for name, paths in part.items() for path in paths] for split, part in found.items()
        }
    return Listing(home, classnames, splits, f"{_OFFICIAL_NOTE}; there is no val part")


def _pets(home: Path, known: KnownSet) -> Listing:
    rows: dict[str, list[Entry]] = {}
    names: dict[int, str] = {}
    for part in ("trainval", "test"):
        file = home / "annotations" / f"{part}.txt"
        with _form(file, "lines of image name, class number, species and breed number"):
            pairs = [(line.split()[0], int(line.split()[1]) - 1) for line in read_lines(file) if not line.startswith("#")]
        names |= {label: image.rpartition("_")[0].lower() for image, label in pairs}
        rows[part] = [(f"{known.images}/{image}.jpg", label) for image, label in pairs]
    classnames = _whole(names, home / "annotations")
    return Listing(home, classnames, _with_test(rows["trainval"], rows["test"], classnames), _VAL_NOTE)


def _ucf(home: Path, known: KnownSet) -> Listing:
    lists = home / "ucfTrainTestlist"
    with _form(lists / "classInd.txt", "lines of class number and action"):
        label_of = {action: int(number) - 1 for number, action in (line.split() for line in read_lines(lists / "classInd.txt"))}
    rows: dict[str, list[Entry]] = {}
    for part in ("trainlist01", "testlist01"):
        with _form(lists / f"{part}.txt", "lines of Action/video.avi, the action one of classInd.txt"):
            videos = [line.split()[0].split("/") for line in read_lines(lists / f"{part}.txt")]
            rows[part] = [(f"{known.images}/{_spaced(action)}/{video.removesuffix('.avi')}.jpg", label_of[action]) for action, video in videos]
    classnames = _whole({label: _spaced(action) for action, label in label_of.items()}, lists)
    return Listing(home, classnames, _with_test(rows["trainlist01"], rows["testlist01"], classnames), _VAL_NOTE)


def _flowers(home: Path, known: KnownSet) -> Listing:
    try:
        from scipy.io import loadmat
        from torchvision.datasets import Flowers102
    except ModuleNotFoundError as cause:
        raise DataError(f"{home / 'imagelabels.mat'} needs {cause.name} to be read; pip install {cause.name}, or use {known.split_file}") from cause
    with _form(home / "imagelabels.mat", "MATLAB files with labels, trnid, valid and tstid"):
        labels = [int(label) - 1 for label in loadmat(io.BytesIO(read_regular(home / "imagelabels.mat", _MAX_BYTES)))["labels"].ravel()]
        ids = loadmat(io.BytesIO(read_regular(home / "setid.mat", _MAX_BYTES)))
        numbers = {split: [int(i) for i in ids[key].ravel()] for split, key in zip(SPLITS, ("trnid", "valid", "tstid"), strict=True)}
        splits = {split: [(f"{known.images}/image_{i:05d}.jpg", labels[i - 1]) for i in part] for split, part in numbers.items()}
    return Listing(home, tuple(Flowers102.classes), splits, _OFFICIAL_NOTE)


def _imagenet(home: Path, known: KnownSet) -> Listing:
    """Training images, and the official validation images as test, as CoOp has it; there is no val part, so that test stays unseen."""
    base = f"{known.images}/" if (home / known.images / "train").is_dir() else ""
    folders = folder_names(home / base / "train")
    names, note = _imagenet_names(home, known, folders)
    tested = folder_names(home / base / "val")
    uneven = sorted(set(folders) ^ set(tested))
    if uneven:
        raise DataError(
            f"{home / base} has {len(folders)} classes in train and {len(tested)} in val, and {uneven[0]} in one of them only; {known.explain(home)}"
        )
    parts = {split: class_images(home, f"{base}{inside}", folders) for split, inside in (("train", "train"), ("test", "val"))}
    note = joined(note, *(part.note for part in parts.values()))
    return Listing(home, names, {split: part.entries for split, part in parts.items()}, note)


def _imagenet_names(home: Path, known: KnownSet, folders: Sequence[str]) -> tuple[tuple[str, ...], str]:
    file = home / "classnames.txt"
    if not file.is_file():
        if len(folders) != known.classes:
            raise DataError(f"{home} has no classnames.txt and {len(folders)} of {known.classes} classes; {known.explain(home)}")
        from open_clip import IMAGENET_CLASSNAMES

        return tuple(IMAGENET_CLASSNAMES), "class names are open_clip's, for there is no classnames.txt; CoOp's differ in a few"
    names = dict(line.split(" ", 1) for line in read_lines(file) if " " in line)
    unknown = [folder for folder in folders if folder not in names]
    if unknown:
        raise DataError(f"{file} has no class name for {len(unknown)} of {len(folders)} folders, the first {unknown[0]!r}; {known.explain(home)}")
    return tuple(names[folder] for folder in folders), ""


def _with_test(trainval: Sequence[Entry], test: Sequence[Entry], classnames: Sequence[str]) -> dict[str, Sequence[Entry]]:
    parts = hashed_split(trainval, classnames, (0.8, 0.2))
    return {"train": parts["train"], "val": parts["val"], "test": test}


def _whole(names: dict[int, str], where: Path) -> tuple[str, ...]:
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{where} names {len(names)} classes, but their numbers are not 1 to {len(names)}; copy the lists again")
    return tuple(names[label] for label in range(len(names)))


def _spaced(action: str) -> str:
    """CoOp's folder of an action: "ApplyEyeMakeup" lies in "Apply_Eye_Makeup"."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))


@contextlib.contextmanager
def _form(file: Path, expected: str) -> Iterator[None]:
    """Maps what a malformed list raises to a DataError that says the form."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as cause:
        raise DataError(f"{file} is not of the form: {expected} ({printable(repr(cause), 300)})") from cause


_COMMON = (("images/train", "images/val"), ("train", "val"))
"""Markers that any folder may have: they count for a set that is named, and recognise none."""

LAYOUTS = MappingProxyType(
    {
        "caltech101": (_coop(KNOWN["caltech101"]), Layout(("101_ObjectCategories",), _class_folders)),
        "oxford_pets": (_coop(KNOWN["oxford_pets"]), Layout(("images", "annotations/trainval.txt", "annotations/test.txt"), _pets)),
        "flowers102": (_coop(KNOWN["flowers102"]), Layout(("jpg", "imagelabels.mat", "setid.mat"), _flowers)),
        "food101": (_coop(KNOWN["food101"]), Layout(("images", "meta/train.json", "meta/test.json"), _food)),
        "fgvc_aircraft": (Layout(("variants.txt", *(f"images_variant_{split}.txt" for split in SPLITS)), _aircraft),),
        "dtd": (_coop(KNOWN["dtd"]), Layout(("images", *(f"labels/{split}1.txt" for split in SPLITS)), _dtd)),
        "ucf101": (_coop(KNOWN["ucf101"]), Layout(("UCF-101-midframes", "ucfTrainTestlist/classInd.txt"), _ucf)),
        "imagenet": tuple(Layout(markers, _imagenet) for markers in (("classnames.txt", "images/train", "images/val"), *_COMMON)),
        "eurosat": (_coop(KNOWN["eurosat"]), Layout(("2750",), _class_folders)),
    }
)
