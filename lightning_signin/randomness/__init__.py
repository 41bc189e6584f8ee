"""Random generators, and the order in which data comes: what exact resuming stands on."""
