"""Masks are scored with the user's own training step and batches, on a copy that leaves no trace."""
