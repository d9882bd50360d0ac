"""The data sets that are known by name, as one table: prompts, folders, how each is read, and how to get it."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from prtool.trainer.data.formats import layouts
from prtool.trainer.data.formats.layouts import KnownSet

DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""Prompts for data that is not known by name."""


_SETS = (
    KnownSet(
        name="caltech101",
        template="a photo of a {}.",
        classes=100,
        homes=("caltech-101", "caltech101"),
        example="101_ObjectCategories/accordion/image_0001.jpg",
        read=layouts.read_folders,
        markers=("101_ObjectCategories",),
        split_file="split_zhou_Caltech101.json",
        torchvision="Caltech101",
        renamed={"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"},
        ignored=("BACKGROUND_Google", "Faces_easy"),
    ),
    KnownSet(
        name="oxford_pets",
        template="a photo of a {}, a type of pet.",
        classes=37,
        homes=("oxford_pets", "oxford-iiit-pet"),
        example="images/Abyssinian_1.jpg",
        read=layouts.read_pets,
        markers=("images", "annotations/trainval.txt", "annotations/test.txt"),
        split_file="split_zhou_OxfordPets.json",
        torchvision="OxfordIIITPet",
    ),
    KnownSet(
        name="flowers102",
        template="a photo of a {}, a type of flower.",
        classes=102,
        homes=("oxford_flowers", "flowers-102"),
        example="jpg/image_00001.jpg",
        read=layouts.read_flowers,
        markers=("jpg", "imagelabels.mat", "setid.mat"),
        split_file="split_zhou_OxfordFlowers.json",
        torchvision="Flowers102",
    ),
    KnownSet(
        name="food101",
        template="a photo of {}, a type of food.",
        classes=101,
        homes=("food-101",),
        example="images/apple_pie/1005649.jpg",
        read=layouts.read_food,
        markers=("images", "meta/train.json", "meta/test.json"),
        split_file="split_zhou_Food101.json",
        torchvision="Food101",
    ),
    KnownSet(
        name="fgvc_aircraft",
        template="a photo of a {}, a type of aircraft.",
        classes=100,
        homes=("fgvc_aircraft", "fgvc-aircraft-2013b/data"),
        example="images/0034309.jpg",
        read=layouts.read_aircraft,
        markers=("variants.txt", "images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt"),
        torchvision="FGVCAircraft",
    ),
    KnownSet(
        name="dtd",
        template="{} texture.",
        classes=47,
        homes=("dtd", "dtd/dtd"),
        example="images/banded/banded_0002.jpg",
        read=layouts.read_dtd,
        markers=("images", "labels/train1.txt", "labels/val1.txt", "labels/test1.txt"),
        split_file="split_zhou_DescribableTextures.json",
        torchvision="DTD",
    ),
    KnownSet(
        name="ucf101",
        template="a photo of a person doing {}.",
        classes=101,
        homes=("ucf101",),
        example="UCF-101-midframes/Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg",
        read=layouts.read_ucf,
        markers=("UCF-101-midframes", "ucfTrainTestlist/classInd.txt"),
        split_file="split_zhou_UCF101.json",
        source="UCF-101-midframes.zip (middle frames; the videos themselves are not read) is linked in CoOp's DATASETS.md",
    ),
    KnownSet(
        name="imagenet",
        template="a photo of a {}.",
        classes=1000,
        homes=("imagenet",),
        example="images/{train,val}/n01440764/*.JPEG",
        read=layouts.read_imagenet,
        markers=("classnames.txt", "images/train", "images/val"),
        common_markers=(("images/train", "images/val"), ("train", "val")),
        source="image-net.org gives it to registered users (val is test); classnames.txt (n01440764 tench ...) is linked in CoOp's DATASETS.md",
    ),
    KnownSet(
        name="eurosat",
        template="a centered satellite photo of {}.",
        classes=10,
        homes=("eurosat",),
        example="2750/AnnualCrop/AnnualCrop_1.jpg",
        read=layouts.read_folders,
        markers=("2750",),
        split_file="split_zhou_EuroSAT.json",
        torchvision="EuroSAT",
        renamed={
            "AnnualCrop": "Annual Crop Land",
            "HerbaceousVegetation": "Herbaceous Vegetation Land",
            "Highway": "Highway or Road",
            "Industrial": "Industrial Buildings",
            "Pasture": "Pasture Land",
            "PermanentCrop": "Permanent Crop Land",
            "Residential": "Residential Buildings",
            "SeaLake": "Sea or Lake",
        },
    ),
)

KNOWN: Mapping[str, KnownSet] = MappingProxyType({item.name: item for item in _SETS})
"""Known data sets by name."""


def recognise(folder: Path) -> KnownSet | None:
    """The known set that lies directly in a folder, as its files tell."""
    return next((known for known in _SETS if known.reader_at(folder, named=False)), None)


def named_like(folder: Path) -> KnownSet | None:
    """The known set that a folder is called after, by its name or CoOp's or torchvision's folder name."""
    name = folder.resolve().name
    return next((item for item in _SETS if name == item.name or name in item.homes), None)
