"""Robust quantised networks to download: what lies in export/zoo, or on a hub, and how it becomes an artifact.

entries    Entry: a folder of whole files, found by name, verified by its zoo.json
hub        folders that lie on a hub, pinned by commit and hash
packing    a suite without the images of others, and back
generated  the labels of generated images, which need no data
artifact   an entry with the user's own copy of the data, as an artifact
card       README.md of an entry
"""

from .artifact import get
from .entries import FLOAT, PREFIX, TORCH, Entry, find, listing

__all__ = ["FLOAT", "PREFIX", "TORCH", "Entry", "find", "get", "listing"]
