"""LightningCLI for sparse fits, shared by the command `fit` and the trials of a sweep."""
