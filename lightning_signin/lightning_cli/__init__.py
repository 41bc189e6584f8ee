"""LightningCLI for sparse fits: the command `fit` and the trials of a sweep share it."""
