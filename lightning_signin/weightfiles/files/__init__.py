"""Files on disks and in object stores, written whole or not at all; the compressed form of weights."""
