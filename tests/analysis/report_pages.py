"""A report's page, read as its tests do."""

import xml.etree.ElementTree as ET

import runs

from fastbn.analyze import main

SECTIONS = [
    "result",
    "curves",
    "batchnorm-and",
    "dead-features",
    "what-the-features-see",
    "pruning",
    "recipe-and-machine",
]


def tree(content):
    """Return the page as XML: it fails where a tag is not closed, or a character not escaped."""
    return ET.fromstring(content.removeprefix("<!DOCTYPE html>\n"))


def refused(arguments, capfd, *patterns):
    runs.refused(main([str(argument) for argument in arguments]), capfd, *patterns)
