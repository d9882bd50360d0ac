"""The data sets that are known by name: prompt templates, class names, where CoOp and torchvision put them, what the tree looks like."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from prtool.text_safety import printable

DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""Prompts for data that is not known by name."""


@dataclass(frozen=True, slots=True)
class KnownSet:
    """One data set.

    Attributes:
        name: as `--data NAME:FOLDER` takes it.
        templates: CoOp's prompts, one {} each.
        classes: how many classes the whole set has, as CoOp counts them.
        homes: its folder in a folder of data sets: CoOp's name, then torchvision's.
        images: CoOp's folder of images, relative to the home.
        split_file: CoOp's JSON beside it; "" where CoOp uses the set's own lists.
        tree: CoOp's layout, drawn.
        torchvision: the class of torchvision.datasets that downloads it; "" for none.
        source: where its files come from, for those that nothing downloads.
        renamed: class folder -> class name, where CoOp writes another one.
        ignored: folders that are no class.
    """

    name: str
    templates: tuple[str, ...]
    classes: int
    homes: tuple[str, ...]
    images: str
    split_file: str
    tree: str
    torchvision: str = ""
    source: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def rename(self, folder: str) -> str:
        """The class name of a class folder."""
        return self.renamed.get(folder, folder)

    def explain(self, folder: Path) -> str:
        """The expected tree, and how to get the set, as the end of an error message of one line."""
        home, *inside = (line.strip() for line in self.tree.splitlines())
        split = f" ({self.split_file} is linked in https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md)" if self.split_file else ""
        command = f"prtool data download {self.name} -o {printable(folder, 300)}"
        how = f"torchvision downloads it: {command}" if self.torchvision else f"it cannot be downloaded for you: {self.source}"
        return f"expected {home} with {', '.join(inside)}{split}; {how}"


_CALTECH_NAMES = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
_EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}

_SETS = (
    KnownSet(
        name="caltech101",
        templates=("a photo of a {}.",),
        classes=100,
        homes=("caltech-101", "caltech101"),
        images="101_ObjectCategories",
        split_file="split_zhou_Caltech101.json",
        tree="  caltech-101/\n    101_ObjectCategories/accordion/image_0001.jpg ...\n    split_zhou_Caltech101.json",
        torchvision="Caltech101",
        renamed=MappingProxyType(_CALTECH_NAMES),
        ignored=("BACKGROUND_Google", "Faces_easy"),
    ),
    KnownSet(
        name="oxford_pets",
        templates=("a photo of a {}, a type of pet.",),
        classes=37,
        homes=("oxford_pets", "oxford-iiit-pet"),
        images="images",
        split_file="split_zhou_OxfordPets.json",
        tree="  oxford_pets/\n    images/Abyssinian_1.jpg ...\n    annotations/{trainval,test}.txt\n    split_zhou_OxfordPets.json",
        torchvision="OxfordIIITPet",
    ),
    KnownSet(
        name="flowers102",
        templates=("a photo of a {}, a type of flower.",),
        classes=102,
        homes=("oxford_flowers", "flowers-102"),
        images="jpg",
        split_file="split_zhou_OxfordFlowers.json",
        tree="  oxford_flowers/\n    jpg/image_00001.jpg ...\n    split_zhou_OxfordFlowers.json",
        torchvision="Flowers102",
    ),
    KnownSet(
        name="food101",
        templates=("a photo of {}, a type of food.",),
        classes=101,
        homes=("food-101",),
        images="images",
        split_file="split_zhou_Food101.json",
        tree="  food-101/\n    images/apple_pie/1005649.jpg ...\n    meta/{train,test}.json\n    split_zhou_Food101.json",
        torchvision="Food101",
    ),
    KnownSet(
        name="fgvc_aircraft",
        templates=("a photo of a {}, a type of aircraft.",),
        classes=100,
        homes=("fgvc_aircraft", "fgvc-aircraft-2013b/data"),
        images="images",
        split_file="",
        tree="  fgvc_aircraft/\n    images/0034309.jpg ...\n    variants.txt\n    images_variant_{train,val,test}.txt",
        torchvision="FGVCAircraft",
    ),
    KnownSet(
        name="dtd",
        templates=("{} texture.",),
        classes=47,
        homes=("dtd", "dtd/dtd"),
        images="images",
        split_file="split_zhou_DescribableTextures.json",
        tree="  dtd/\n    images/banded/banded_0002.jpg ...\n    labels/{train,val,test}1.txt\n    split_zhou_DescribableTextures.json",
        torchvision="DTD",
    ),
    KnownSet(
        name="ucf101",
        templates=("a photo of a person doing {}.",),
        classes=101,
        homes=("ucf101",),
        images="UCF-101-midframes",
        split_file="split_zhou_UCF101.json",
        tree="  ucf101/\n    UCF-101-midframes/Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg ...\n    split_zhou_UCF101.json",
        source="UCF-101-midframes.zip (middle frames; the videos themselves are not read) is linked in CoOp's DATASETS.md",
    ),
    KnownSet(
        name="imagenet",
        templates=("a photo of a {}.",),
        classes=1000,
        homes=("imagenet",),
        images="images",
        split_file="",
        tree="  imagenet/\n    images/{train,val}/n01440764/*.JPEG ... (val is taken as test)\n    classnames.txt (n01440764 tench ...)",
        source="image-net.org gives it to registered users; classnames.txt is linked in CoOp's DATASETS.md",
    ),
    KnownSet(
        name="eurosat",
        templates=("a centered satellite photo of {}.",),
        classes=10,
        homes=("eurosat",),
        images="2750",
        split_file="split_zhou_EuroSAT.json",
        tree="  eurosat/\n    2750/AnnualCrop/AnnualCrop_1.jpg ...\n    split_zhou_EuroSAT.json",
        torchvision="EuroSAT",
        renamed=MappingProxyType(_EUROSAT_NAMES),
    ),
)

KNOWN: Mapping[str, KnownSet] = MappingProxyType({item.name: item for item in _SETS})
"""Known data sets by name."""


def named_like(folder: Path) -> KnownSet | None:
    """The known set that a folder is called after, by its name or CoOp's or torchvision's folder name."""
    name = folder.resolve().name
    return next((item for item in _SETS if name == item.name or name in item.homes), None)
