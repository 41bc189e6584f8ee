"""A masked weight and its storage; and modules with masked weights: selected, shown plain, saved, trained."""
