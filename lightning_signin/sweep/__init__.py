"""A grid of fits over methods, sparsities and seeds: the runs that a folder lacks, and one table of all of them."""
