"""The data sets by name. Imports nothing, so that the command line's help is instant."""

DATASETS = ("auto", "cifar10", "cifar100", "digits", "folder")
DEFAULT_DIR = "data"  # the one folder that is downloaded into without being asked
