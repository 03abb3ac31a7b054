"""The one place where the version stands; setup.py reads it as text."""

VERSION = "0.1.0"
