"""Reading and writing weights, masks and signs: our own formats and those of other packages."""
