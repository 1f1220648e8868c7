"""Nested dictionaries of arrays: flat names and back, and a fingerprint of names and values."""

import hashlib
from collections.abc import Mapping

import numpy as np


def flatten(tree: Mapping, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": x}} -> {"a/b": x}, in the tree's order."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def unflatten(flat: Mapping[str, object]) -> dict:
    """{"a/b": x} -> {"a": {"b": x}}. ValueError if one name is another's folder ("a" and "a/b")."""
    tree: dict = {}
    for name, value in flat.items():
        *folders, leaf = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise ValueError(f"{folder} in {name} is an array")
        if leaf in node:
            raise ValueError(f"{name} is there twice")
        node[leaf] = value
    return tree


class Fingerprint:
    """`fingerprint`, array by array, which must come in the order of their names."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def add(self, name: str, array: np.ndarray) -> None:
        """Take in the array of one name ("a/b")."""
        self._digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        self._digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    def text(self) -> str:
        """64 hex digits."""
        return self._digest.hexdigest()


def fingerprint(tree: Mapping) -> str:
    """SHA-256 (64 hex digits) over the sorted names, number types, shapes and bytes of a tree of arrays.

    Independent of the tree's order and of the arrays' memory layout; a checkpoint stores its
    backbone's, so that it is never restored beside another one.
    """
    result = Fingerprint()
    for name, value in sorted(flatten(tree).items()):
        result.add(name, np.asarray(value))
    return result.text()
