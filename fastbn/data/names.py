"""The data sets by name. Imports nothing, so that the command line's help is instant."""

DATASETS = ["auto", "cifar10", "cifar100", "digits", "folder", "imagenet"]
READERS: dict[str, str] = {}  # of the data sets that one study alone reads: "module:function"
EMBEDDED = ("digits",)  # which come with the package and are read from no folder
IMAGE_SIZE = {"cifar": 32, "imagenet": 224}  # the side of class-folder images, by the network's family
DEFAULT_DIR = "data"  # the one folder that is downloaded into without being asked
# what a data set's studies train by, where it is not the recipe's defaults: the paper's, on ImageNet
USUAL = {
    "imagenet": {"batch_size": 1024, "lr": 0.4, "milestones": (30, 60, 80), "warmup_epochs": 5},
}


def register(name: str, reader: str) -> None:
    """Add a data set that one study alone reads, as that study does. reader: "module:function" that takes the
    folder and returns (train, test)."""
    DATASETS.append(name)
    READERS[name] = reader
