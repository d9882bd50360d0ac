import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from prtool.errors import DataError
from prtool.trainer.data.download import download, downloadable
from prtool.trainer.data.formats.known import KNOWN
from prtool.trainer.data.images import ImageSet
from prtool.trainer.data.load import available_splits, load_split, templates_for

# shared/method.md, section 6, and the paper's order of sets
TEMPLATES = {
    "caltech101": "a photo of a {}.",
    "oxford_pets": "a photo of a {}, a type of pet.",
    "flowers102": "a photo of a {}, a type of flower.",
    "food101": "a photo of {}, a type of food.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "dtd": "{} texture.",
    "ucf101": "a photo of a person doing {}.",
    "imagenet": "a photo of a {}.",
    "eurosat": "a centered satellite photo of {}.",
}
# CoOp's DATASETS.md: folder, folder of images, split file
COOP = {
    "caltech101": ("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"),
    "oxford_pets": ("oxford_pets", "images", "split_zhou_OxfordPets.json"),
    "flowers102": ("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json"),
    "food101": ("food-101", "images", "split_zhou_Food101.json"),
    "dtd": ("dtd", "images", "split_zhou_DescribableTextures.json"),
    "ucf101": ("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json"),
    "eurosat": ("eurosat", "2750", "split_zhou_EuroSAT.json"),
}


def write(root: Path, *names: str) -> Path:
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "JPEG")
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue())
    return root


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def pairs(images: ImageSet) -> list[tuple[str, str]]:
    return [(path, images.classnames[label]) for path, label in zip(images.paths, images.labels, strict=True)]


def test_every_set_has_its_template() -> None:
    assert {name: known.template for name, known in KNOWN.items()} == TEMPLATES


@pytest.mark.parametrize("name", COOP)
def test_coop_layout(name: str, tmp_path: Path) -> None:
    home, inside, file = COOP[name]
    write(tmp_path / home / inside, "b/1.jpg", "a/2.jpg", "b/3.jpg")
    rows = {"train": [["b/1.jpg", 0, "bee"], ["a/2.jpg", 1, "ant"]], "val": [["a/2.jpg", 1, "ant"]], "test": [["b/3.jpg", 0, "bee"]]}
    text(tmp_path / home / file, json.dumps(rows))
    found = load_split(f"{name}:{tmp_path}", "train")
    assert pairs(found) == [(f"{inside}/b/1.jpg", "bee"), (f"{inside}/a/2.jpg", "ant")] and found.file(0).is_file() and found.note == ""
    for data in (f"{name}:{tmp_path / home}", str(tmp_path / home), found.origin):
        assert load_split(data, "train").paths == found.paths
        assert templates_for(data) == (TEMPLATES[name],)
    with pytest.raises(DataError, match=re.escape(f"--data {name}:{tmp_path}")):
        load_split(tmp_path, "train")


def is_explained(message: str, name: str) -> bool:
    """Whether a message of one line names everything that a set consists of."""
    known = KNOWN[name]
    return "\n" not in message and all(part in message for part in (known.homes[0], known.example, known.split_file, *known.lists))


def test_half_downloaded(tmp_path: Path) -> None:
    write(tmp_path / "dtd" / "images", "banded/1.jpg")
    rows = [["banded/1.jpg", 0, "banded"], ["dotted/2.jpg", 1, "dotted"], ["dotted/3.jpg", 1, "dotted"]]
    text(tmp_path / "dtd" / "split_zhou_DescribableTextures.json", json.dumps({"train": rows, "val": [], "test": []}))
    with pytest.raises(DataError) as caught:
        load_split(f"dtd:{tmp_path}", "train")
    message = str(caught.value)
    assert re.search("2 of 3 .*'train'.*'images/dotted/2.jpg'", message)
    assert is_explained(message, "dtd") and f"prtool data download dtd -o {tmp_path}" in message


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_not_there_is_drawn(name: str, tmp_path: Path) -> None:
    for data in (f"{name}:{tmp_path}", f"{name}:{tmp_path / 'absent'}", name):
        with pytest.raises(DataError) as caught:
            load_split(data, "train")
        assert is_explained(str(caught.value), name)
        assert ("prtool data download" in str(caught.value)) == (name in downloadable())


def test_unknown_names() -> None:
    with pytest.raises(DataError, match=r"'flowers'.*flowers102"):
        load_split("flowers:/somewhere", "train")


def test_aircraft(tmp_path: Path) -> None:
    home = tmp_path / "fgvc_aircraft"
    write(home / "images", "001.jpg", "002.jpg", "003.jpg")
    text(home / "variants.txt", "707-320\nF/A-18\nDHC-8-100 x\n")
    text(home / "images_variant_train.txt", "002 DHC-8-100 x\n001 707-320\n")
    text(home / "images_variant_val.txt", "003 F/A-18\n")
    text(home / "images_variant_test.txt", "003 F/A-18\n")
    for data in (home, f"fgvc_aircraft:{tmp_path}"):
        assert pairs(load_split(data, "train")) == [("images/002.jpg", "DHC-8-100 x"), ("images/001.jpg", "707-320")]
    text(home / "images_variant_val.txt", "003 F/A-19\n")
    with pytest.raises(DataError, match=r"images_variant_val\.txt"):
        load_split(home, "train")


def imagenet(base: Path, classes: int = 2) -> None:
    for number in range(classes):
        write(base, f"train/n{number:08d}/a.JPEG", f"train/n{number:08d}/b.JPEG", f"val/n{number:08d}/v.JPEG")


def test_imagenet(tmp_path: Path) -> None:
    home = tmp_path / "imagenet"
    imagenet(home / "images")
    text(home / "classnames.txt", "n00000001 great white shark\nn00000000 tench\nn00000009 not there\n")
    found = load_split(home, "train")
    assert found.classnames == ("tench", "great white shark") and found.labels == (0, 0, 1, 1)
    assert load_split(f"imagenet:{tmp_path}", "test").paths == ("images/val/n00000000/v.JPEG", "images/val/n00000001/v.JPEG")
    assert available_splits(home) == ("train", "test")
    write(home / "images", "train/n00000002/a.JPEG")
    with pytest.raises(DataError, match=r"1 of 3.*'n00000002'"):
        load_split(home, "train")
    text(home / "classnames.txt", "n00000000 a\nn00000001 b\nn00000002 c\n")
    with pytest.raises(DataError, match=r"train.*val.*n00000002"):
        load_split(home, "train")


def test_imagenet_as_torchvision_unpacks_it(tmp_path: Path) -> None:
    imagenet(tmp_path, 2)
    with pytest.raises(DataError, match=r"classnames\.txt.* 2 of 1000"):
        load_split(f"imagenet:{tmp_path}", "train")
    imagenet(tmp_path, 1000)
    found = load_split(f"imagenet:{tmp_path}", "test")
    assert found.classnames[0] == "tench" and found.classnames[999] == "toilet paper" and "open_clip" in found.note
    assert found.paths[7] == "val/n00000007/v.JPEG" and found.labels[7] == 7


def test_caltech_folders_without_a_split_file(tmp_path: Path) -> None:
    folders = [f"class{i:02d}" for i in range(98)] + ["Faces", "airplanes"]
    base = tmp_path / "caltech101" / "101_ObjectCategories"
    write(base, *(f"{folder}/image_{i:04d}.jpg" for folder in (*folders, "BACKGROUND_Google", "Faces_easy") for i in range(3)))
    found = load_split(f"caltech101:{tmp_path}", "train")
    assert len(found.classnames) == 100 and {"face", "airplane"} <= set(found.classnames) and not {"Faces", "Faces_easy"} & set(found.classnames)
    assert found.classnames[0] == "face", "labels follow the folders' order"
    assert "split_zhou_Caltech101.json" in found.note
    for i in range(3):
        (base / "Faces" / f"image_{i:04d}.jpg").unlink()
    (base / "Faces").rmdir()
    with pytest.raises(DataError, match=r"99.*caltech101.*100"):
        load_split(f"caltech101:{tmp_path}", "train")


def test_eurosat_folders(tmp_path: Path) -> None:
    folders = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential", "River", "SeaLake"]
    write(tmp_path / "eurosat" / "2750", *(f"{folder}/{folder}_{i}.jpg" for folder in folders for i in range(3)))
    names = load_split(tmp_path / "eurosat", "val").classnames
    assert names[0] == "Annual Crop Land" and names[1] == "Forest" and names[9] == "Sea or Lake"


def test_pets_lists(tmp_path: Path) -> None:
    home = tmp_path / "oxford-iiit-pet"
    images = [f"Abyssinian_{i}" for i in range(10)] + [f"american_bulldog_{i}" for i in range(10)]
    write(home / "images", *(f"{image}.jpg" for image in [*images, "Abyssinian_99", "american_bulldog_99"]))
    text(home / "annotations" / "trainval.txt", "".join(f"{image} {1 + (image[0] == 'a')} 1 1\n" for image in images))
    text(home / "annotations" / "test.txt", "american_bulldog_99 2 2 1\nAbyssinian_99 1 1 1\n")
    train, val, test = (load_split(f"oxford_pets:{tmp_path}", split) for split in ("train", "val", "test"))
    assert (len(train), len(val)) == (16, 4) and sorted(train.paths + val.paths) == sorted(f"images/{image}.jpg" for image in images)
    assert pairs(test) == [("images/american_bulldog_99.jpg", "american_bulldog"), ("images/Abyssinian_99.jpg", "abyssinian")]


def test_food_lists(tmp_path: Path) -> None:
    home = tmp_path / "food-101"
    write(home / "images", "apple_pie/1.jpg", "baklava/2.jpg", "baklava/3.jpg")
    text(home / "meta" / "train.json", json.dumps({"baklava": ["baklava/2"], "apple_pie": ["apple_pie/1"]}))
    text(home / "meta" / "test.json", json.dumps({"baklava": ["baklava/3"]}))
    assert pairs(load_split(home, "train")) == [("images/baklava/2.jpg", "baklava"), ("images/apple_pie/1.jpg", "apple_pie")]
    assert available_splits(home) == ("train", "test")
    text(home / "meta" / "test.json", json.dumps({"cake": ["cake/3"]}))
    with pytest.raises(DataError, match=r"test\.json"):
        load_split(home, "train")


def test_dtd_lists(tmp_path: Path) -> None:
    home = tmp_path / "dtd" / "dtd"
    write(home / "images", "dotted/1.jpg", "banded/2.jpg")
    for split in ("train", "val", "test"):
        text(home / "labels" / f"{split}1.txt", "dotted/1.jpg\nbanded/2.jpg\n")
    assert pairs(load_split(f"dtd:{tmp_path}", "val")) == [("images/dotted/1.jpg", "dotted"), ("images/banded/2.jpg", "banded")]


def test_flowers_lists(tmp_path: Path) -> None:
    io_ = pytest.importorskip("scipy.io")
    home = tmp_path / "flowers-102"
    write(home / "jpg", *(f"image_{i:05d}.jpg" for i in range(1, 5)))
    io_.savemat(home / "imagelabels.mat", {"labels": [[77, 1, 102, 77]]})
    io_.savemat(home / "setid.mat", {"trnid": [[4, 2]], "valid": [[1]], "tstid": [[3]]})
    found = load_split(home, "train")
    assert pairs(found) == [("jpg/image_00004.jpg", "passion flower"), ("jpg/image_00002.jpg", "pink primrose")]
    assert found.labels == (76, 0) and pairs(load_split(home, "test")) == [("jpg/image_00003.jpg", "blackberry lily")]


def test_ucf_lists(tmp_path: Path) -> None:
    home = tmp_path / "ucf101"
    videos = [f"ApplyEyeMakeup/v_ApplyEyeMakeup_g{i:02d}_c01" for i in range(5)] + [f"YoYo/v_YoYo_g{i:02d}_c01" for i in range(5)]
    folder = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "YoYo": "Yo_Yo"}
    files = [f"UCF-101-midframes/{folder[v.split('/')[0]]}/{v.split('/')[1]}.jpg" for v in videos]
    write(home, *files)
    text(home / "ucfTrainTestlist" / "classInd.txt", "1 ApplyEyeMakeup\n2 YoYo\n")
    text(home / "ucfTrainTestlist" / "trainlist01.txt", "".join(f"{v}.avi {1 + (v[0] == 'Y')}\n" for v in videos))
    text(home / "ucfTrainTestlist" / "testlist01.txt", f"{videos[9]}.avi\n")
    train, val, test = (load_split(home, split) for split in ("train", "val", "test"))
    assert sorted(train.paths + val.paths) == sorted(files) and len(val) == 2
    assert pairs(test) == [(files[9], "Yo_Yo")] and train.classnames == ("Apply_Eye_Makeup", "Yo_Yo")


def test_class_folders_of_a_named_set(tmp_path: Path) -> None:
    write(tmp_path / "mine", "train/SeaLake/1.jpg", "train/Forest/2.jpg")
    assert load_split(f"eurosat:{tmp_path / 'mine'}", "train").classnames == ("Forest", "Sea or Lake")
    assert load_split(tmp_path / "mine", "train").classnames == ("Forest", "SeaLake"), "an unnamed folder is taken as it is"
    assert templates_for(tmp_path / "mine") == ("a photo of a {}.",)
    assert templates_for(f"eurosat:{tmp_path / 'mine'}") == (TEMPLATES["eurosat"],)


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    class Eurosat:
        def __init__(self, root: str, download: bool) -> None:
            if not download:
                raise RuntimeError("Dataset not found.")
            write(Path(root) / "eurosat" / "2750", "Forest/1.jpg")

    monkeypatch.setattr(torchvision.datasets, "EuroSAT", Eurosat)
    assert download("eurosat", tmp_path / "new") == f"eurosat:{tmp_path / 'new'}"
    with pytest.raises(DataError, match=r"1.*eurosat.*10"):
        load_split(download("eurosat", tmp_path), "train")
    write(tmp_path / "mine" / "eurosat", "thesis.txt")
    with pytest.raises(DataError, match=r"mine/eurosat.*Dataset not found"):
        download("eurosat", tmp_path / "mine")

    def broken(root: str, download: bool) -> None:
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(torchvision.datasets, "EuroSAT", broken)
    with pytest.raises(DataError, match=r"eurosat.*corrupted"):
        download("eurosat", tmp_path / "broken")
    assert list((tmp_path / "broken").iterdir()) == []
    with pytest.raises(DataError, match=r"imagenet.*caltech101"):
        download("imagenet", tmp_path)
    with pytest.raises(DataError, match="'cifar'"):
        download("cifar", tmp_path)


def test_every_downloader_exists() -> None:
    import torchvision.datasets

    assert set(downloadable()) == set(KNOWN) - {"ucf101", "imagenet"}
    assert all(hasattr(torchvision.datasets, KNOWN[name].torchvision) for name in downloadable())
