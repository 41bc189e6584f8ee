"""Products with matrices of which only the non-zeros are stored."""
