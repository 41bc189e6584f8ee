"""Operations on a whole module: make it sparse, rescale, merge."""
