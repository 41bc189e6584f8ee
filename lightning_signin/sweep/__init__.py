"""A grid of fits over methods, sparsities and seeds: runs what a folder lacks, and summarizes all runs in a table."""
