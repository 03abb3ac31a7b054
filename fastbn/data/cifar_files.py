"""The official files of CIFAR-10 and CIFAR-100 (Krizhevsky 2009), as data: folders, sizes, MD5s, archives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """One file of an official folder."""

    name: str
    md5: str
    size: int | None = None  # bytes; None: the MD5 alone tells


@dataclass(frozen=True)
class CifarForm:
    """One of the two forms in which a set is published."""

    folder: str
    pickled: bool  # python batches; else records of label bytes and 3,072 pixel bytes
    train: tuple[File, ...]
    test: tuple[File, ...]
    # not read here; unpacked with the rest, so that other programs find the folder whole
    others: tuple[File, ...] = ()
    labels_key: str = "labels"  # python batches: where the labels are
    label_bytes: int = 1  # binary batches: the label is the last of so many bytes


@dataclass(frozen=True)
class Cifar:
    """A set: its classes, its forms (the first is what is downloaded), its archive."""

    name: str
    title: str
    classes: tuple[str, ...]
    forms: tuple[CifarForm, ...]
    url: str
    md5: str

    @property
    def archive(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def folders(self) -> str:
        return " or ".join(form.folder for form in self.forms)


SITE = "https://www.cs.toronto.edu/~kriz"
BINARY_10 = 10_000 * 3_073

CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    url=f"{SITE}/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    forms=(
        CifarForm(
            folder="cifar-10-batches-py",
            pickled=True,
            train=(
                File("data_batch_1", "c99cafc152244af753f735de768cd75f", 31_035_704),
                File("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec", 31_035_320),
                File("data_batch_3", "54ebc095f3ab1f0389bbae665268c751", 31_035_999),
                File("data_batch_4", "634d18415352ddfa80567beed471001a", 31_035_696),
                File("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb", 31_035_623),
            ),
            test=(File("test_batch", "40351d587109b95175f43aff81a1287e", 31_035_526),),
            others=(File("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),),
        ),
        CifarForm(
            folder="cifar-10-batches-bin",
            pickled=False,
            train=(
                File("data_batch_1.bin", "5dd7e06a14cb22eb9f671a540d1b7c25", BINARY_10),
                File("data_batch_2.bin", "5ea93a67294ea407fff1d09f752e9692", BINARY_10),
                File("data_batch_3.bin", "942cd6a4bcdd0dd3c604fbe906cb4421", BINARY_10),
                File("data_batch_4.bin", "ae636b3ba5c66a11e91e8cb52e771fcb", BINARY_10),
                File("data_batch_5.bin", "53f37980c15c3d472c316c40844f3f0d", BINARY_10),
            ),
            test=(File("test_batch.bin", "803d5f7f4d78ea53de84dbe85f74fb6d", BINARY_10),),
        ),
    ),
)

CLASSES_100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100",
    classes=tuple(CLASSES_100.split()),
    url=f"{SITE}/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    forms=(
        CifarForm(
            folder="cifar-100-python",
            pickled=True,
            train=(File("train", "16019d7e3df5f24257cddd939b257f8d"),),
            test=(File("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
            others=(File("meta", "7973b15100ade9c7d40fb424638fde48"),),
            labels_key="fine_labels",
        ),
        CifarForm(
            folder="cifar-100-binary",
            pickled=False,
            train=(File("train.bin", "6172c7755cfe09b2fe270c85cebc1b15", 50_000 * 3_074),),
            test=(File("test.bin", "4499cfba6c016c1be1438163640a0898", 10_000 * 3_074),),
            label_bytes=2,  # the coarse class, then the fine one
        ),
    ),
)
