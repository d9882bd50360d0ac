"""A known data set, and the readers of those without CoOp's split file: class folders, and the lists of torchvision's downloads."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prtool.errors import DataError
from prtool.runtime.images.files import folder_names
from prtool.strict import parse_json, read_regular
from prtool.text_safety import printable
from prtool.trainer.data.formats.folders import class_images, read_class_folders, read_split_file
from prtool.trainer.data.formats.tables import expect_form, read_lines
from prtool.trainer.data.images import SPLITS
from prtool.trainer.data.listing import Entry, Listing, hashed_split, joined, names_in_order, numbered

_MAX_BYTES = 1 << 28
_NOT_COOPS = "these are not CoOp's splits, so figures differ from published ones"
_OFFICIAL_NOTE = f"the set's own split lists; {_NOT_COOPS}"
_VAL_NOTE = f"train and val are 80/20 of the set's own trainval list, by a hash of each image's path; {_NOT_COOPS}, but test is the same"
Reader = Callable[[Path, "KnownSet"], Listing]
"""Reads the home of a known set."""


@dataclass(frozen=True, slots=True)
class KnownSet:
    """One data set, in CoOp's layout or in that of torchvision's download.

    Attributes:
        name: as `--data NAME:FOLDER` takes it.
        template: CoOp's prompt, with one {}.
        classes: how many classes the whole set has, as CoOp counts them.
        homes: its folder in a folder of data sets: CoOp's name, then torchvision's.
        example: an image in CoOp's folder of images, relative to the home.
        read: reads the set without CoOp's split file.
        markers: files and folders in the home that `read` needs, and that identify the set.
        split_file: CoOp's JSON in the home; "" if CoOp uses the set's own lists.
        common_markers: alternatives to the markers that other sets may have as well.
        torchvision: the class of torchvision.datasets that downloads it; "" for none.
        source: where its files come from, if nothing downloads them.
        renamed: class folder -> class name, where CoOp writes another one.
        ignored: folders that are no class.
    """

    name: str
    template: str
    classes: int
    homes: tuple[str, ...]
    example: str
    read: Reader
    markers: tuple[str, ...]
    split_file: str = ""
    common_markers: tuple[tuple[str, ...], ...] = ()
    torchvision: str = ""
    source: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @property
    def images(self) -> str:
        """CoOp's folder of images, relative to the home."""
        return self.example.partition("/")[0]

    @property
    def lists(self) -> tuple[str, ...]:
        """The set's own lists, among its markers."""
        return tuple(marker for marker in self.markers if marker.partition("/")[0] != self.images)

    def rename(self, folder: str) -> str:
        """The class name of a class folder."""
        return self.renamed.get(folder, folder)

    def explain(self, folder: Path) -> str:
        """The expected files, and how to get the set, as the end of an error message of one line."""
        split = f"{self.split_file} (linked in https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md)" if self.split_file else ""
        lists = " or ".join(filter(None, (split, " + ".join(self.lists))))
        command = f"prtool data download {self.name} -o {printable(folder, 300)}"
        how = f"torchvision downloads it: {command}" if self.torchvision else f"it cannot be downloaded for you: {self.source}"
        return f"expected {self.homes[0]}/ with {self.example} ..., {lists}; {how}"

    def reader_at(self, home: Path, *, named: bool) -> Reader | None:
        """How to read the set if it lies directly in a folder, else None; its common markers count only if it was named."""
        if self.split_file and (home / self.split_file).exists():
            return lambda home, known: read_split_file(home, home / known.split_file, known.images)
        alternatives = (self.markers, *self.common_markers) if named else (self.markers,)
        return self.read if any(all((home / marker).exists() for marker in markers) for markers in alternatives) else None

    def find(self, folder: Path) -> tuple[Path, Reader] | None:
        """The home of the set and its reader: in `folder` itself, or in its usual place in a folder of data sets."""
        homes = (folder, *(folder / name for name in self.homes))
        return next(((home, read) for home in homes if (read := self.reader_at(home, named=True))), None)


def read_folders(home: Path, known: KnownSet) -> Listing:
    """Caltech101 and EuroSAT: class folders, all of them."""
    folders = [name for name in folder_names(home / known.images) if name not in known.ignored]
    if len(folders) != known.classes:
        raise DataError(
            f"{home / known.images} has {len(folders)} class folders, but {known.name} has {known.classes}: it is incomplete; {known.explain(home)}"
        )
    found = read_class_folders(home, known.images, known.rename, known.ignored)
    return Listing(home, found.classnames, found.splits, joined(found.note, f"{_NOT_COOPS}: put {known.split_file} next to the images for those"))


def read_aircraft(home: Path, known: KnownSet) -> Listing:
    """CoOp uses these lists as well."""
    classnames = tuple(read_lines(home / "variants.txt"))
    label_of = numbered(classnames)

    def row(line: str) -> Entry:
        image, variant = line.split(" ", 1)
        return f"{known.images}/{image}.jpg", label_of[variant]

    form = "lines of image number and variant, the variant one of variants.txt"
    return Listing(home, classnames, {split: _rows(home / f"images_variant_{split}.txt", form, row) for split in SPLITS})


def read_dtd(home: Path, known: KnownSet) -> Listing:
    """The first of the set's ten splits."""
    lists = {split: read_lines(home / "labels" / f"{split}1.txt") for split in SPLITS}
    classnames = tuple(sorted({line.split("/")[0] for lines in lists.values() for line in lines}))
    label_of = numbered(classnames)
    splits = {split: [(f"{known.images}/{line}", label_of[line.split("/")[0]]) for line in lines] for split, lines in lists.items()}
    return Listing(home, classnames, splits, f"split 1 of the set's ten; {_OFFICIAL_NOTE}")


def read_food(home: Path, known: KnownSet) -> Listing:
    """Official train and test, and no val."""
    label_of: Mapping[str, int] = {}
    splits: dict[str, list[Entry]] = {}
    for split in ("train", "test"):
        file = home / "meta" / f"{split}.json"
        with expect_form(file, "{class: [class/number, ...]}, with the classes of train.json"):
            found = {str(name): [str(path) for path in paths] for name, paths in parse_json(read_regular(file, _MAX_BYTES)).items()}
            if split == "train":
                label_of = numbered(sorted(found))
            splits[split] = [(f"{known.images}/{path}.jpg", label_of[name]) for name, paths in found.items() for path in paths]
    return Listing(home, tuple(label_of), splits, f"{_OFFICIAL_NOTE}; there is no val part")


def read_pets(home: Path, known: KnownSet) -> Listing:
    """Official test; class names are those of the images' files."""
    names: dict[int, str] = {}

    def row(line: str) -> Entry:
        image, number = line.split()[:2]
        names[int(number)] = image.rpartition("_")[0].lower()
        return f"{known.images}/{image}.jpg", int(number) - 1

    form = "lines of image name, class number, species and breed number"
    trainval, test = (_rows(home / "annotations" / f"{part}.txt", form, row, comment="#") for part in ("trainval", "test"))
    return _with_val(home, names_in_order(names, home / "annotations", first=1), trainval, test)


def read_ucf(home: Path, known: KnownSet) -> Listing:
    """Official test of the first of three splits; middle frames in CoOp's folders, "ApplyEyeMakeup" in "Apply_Eye_Makeup"."""
    lists = home / "ucfTrainTestlist"
    with expect_form(lists / "classInd.txt", "lines of class number and action"):
        number_of = {action: int(number) for number, action in (line.split() for line in read_lines(lists / "classInd.txt"))}

    def row(line: str) -> Entry:
        action, video = line.split(maxsplit=1)[0].split("/")
        return f"{known.images}/{_spaced(action)}/{video.removesuffix('.avi')}.jpg", number_of[action] - 1

    form = "lines of Action/video.avi, the action one of classInd.txt"
    trainval, test = (_rows(lists / f"{part}.txt", form, row) for part in ("trainlist01", "testlist01"))
    names = {number: _spaced(action) for action, number in number_of.items()}
    return _with_val(home, names_in_order(names, lists, first=1), trainval, test)


def read_flowers(home: Path, known: KnownSet) -> Listing:
    """Official splits, with 10 training images per class."""
    try:
        from scipy.io import loadmat
        from torchvision.datasets import Flowers102
    except ModuleNotFoundError as cause:
        raise DataError(f"{home / 'imagelabels.mat'} needs {cause.name} to be read; pip install {cause.name}, or use {known.split_file}") from cause
    with expect_form(home / "imagelabels.mat", "MATLAB files with labels, trnid, valid and tstid"):
        labels, ids = (loadmat(io.BytesIO(read_regular(home / name, _MAX_BYTES))) for name in ("imagelabels.mat", "setid.mat"))
        label_of = [int(label) - 1 for label in labels["labels"].ravel()]
        numbers = {split: [int(i) for i in ids[key].ravel()] for split, key in zip(SPLITS, ("trnid", "valid", "tstid"), strict=True)}
        splits = {split: [(f"{known.images}/image_{i:05d}.jpg", label_of[i - 1]) for i in part] for split, part in numbers.items()}
    return Listing(home, tuple(Flowers102.classes), splits, _OFFICIAL_NOTE)


def read_imagenet(home: Path, known: KnownSet) -> Listing:
    """The official validation images are test, as in CoOp; there is no val, so that nothing is chosen on test."""
    base = f"{known.images}/" if (home / known.images / "train").is_dir() else ""
    folders = folder_names(home / base / "train")
    names, note = _imagenet_names(home, known, folders)
    tested = folder_names(home / base / "val")
    uneven = sorted(set(folders) ^ set(tested))
    if uneven:
        raise DataError(
            f"{home / base} has {len(folders)} classes in train and {len(tested)} in val, and {uneven[0]} in only one of them; {known.explain(home)}"
        )
    (train, train_note), (test, test_note) = (class_images(home, f"{base}{part}", folders) for part in ("train", "val"))
    return Listing(home, names, {"train": train, "test": test}, joined(note, train_note, test_note))


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


def _rows(file: Path, form: str, row: Callable[[str], Entry], comment: str = "") -> list[Entry]:
    """One entry per line of a list."""
    with expect_form(file, form):
        return [row(line) for line in read_lines(file) if not (comment and line.startswith(comment))]


def _with_val(home: Path, classnames: tuple[str, ...], trainval: Sequence[Entry], test: Sequence[Entry]) -> Listing:
    """A set whose own lists have no val: a hash takes it from trainval."""
    return Listing(home, classnames, {**hashed_split(trainval, classnames, (0.8, 0.2)), "test": test}, _VAL_NOTE)


def _spaced(action: str) -> str:
    return "_".join(re.findall("[A-Z][^A-Z]*", action))
