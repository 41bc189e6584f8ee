"""What all tests of this folder have."""

import gc

import pytest


@pytest.fixture(autouse=True)
def quick_collections():
    """A trace of the network collects garbage, which takes longer than the rows with all tests in memory."""
    gc.freeze()
    yield
    gc.unfreeze()
