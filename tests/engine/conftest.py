"""Fixtures that several tests of the engine share."""

import warnings

import pytest
from nets import resnet

from bench.oracle.stock import fused


@pytest.fixture
def model():
    return fused(resnet(8, 4).double())


@pytest.fixture
def no_silent_fallback():
    """A warning that a test does not expect is a model that ran stock."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
