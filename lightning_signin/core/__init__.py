"""A masked weight and how it is stored, and a module that has some: selected, shown plain, saved, trained."""
