"""What is done to a whole module: make it sparse, rescale, merge."""
