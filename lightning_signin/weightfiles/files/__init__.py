"""Files on disks and in object stores, written atomically; the compressed form of weights."""
