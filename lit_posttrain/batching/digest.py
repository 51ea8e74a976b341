"""Digests of data, by which they are known again in every process."""

import hashlib
from array import array
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DIGEST_BYTES = 16


def digest_of(*values: Any) -> bytes:
    """A digest of content: equal values have equal digests in every process.

    Args:
        values: numbers, text, bytes, tensors, arrays, and mappings, sequences, sets and plain objects of these. Of
            anything else the kind alone counts.

    >>> digest_of({"prompt": "a", "n": 1}) == digest_of({"n": 1, "prompt": "a"})
    True
    >>> digest_of([1, 2]) == digest_of([2, 1])
    False
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for value in values:
        _add(digest, value)
    return digest.digest()


def _add(digest: Any, value: Any) -> None:
    if value is None or isinstance(value, bool | int | float | complex | str):
        text = f"{type(value).__name__}:{value!r}".encode(errors="surrogatepass")
        digest.update(f"{len(text)}:".encode() + text)
    elif isinstance(value, bytes | bytearray | memoryview):
        digest.update(f"bytes:{len(value)}:".encode() + bytes(value))
    elif isinstance(value, array):
        digest.update(f"array:{value.typecode}:{len(value)}:".encode() + value.tobytes())
    elif isinstance(value, Tensor):
        dense = value.detach().cpu().contiguous()
        digest.update(f"tensor:{dense.dtype}:{tuple(dense.shape)}:".encode())
        digest.update(dense.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"mapping:{len(value)}:".encode())
        for key in sorted(value, key=repr):
            _add(digest, key)
            _add(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"sequence:{len(value)}:".encode())
        for each in value:
            _add(digest, each)
    elif isinstance(value, set | frozenset):
        digest.update(f"set:{len(value)}:".encode())
        for part in sorted(digest_of(each) for each in value):
            digest.update(part)
    elif callable(getattr(value, "tobytes", None)):  # an array of NumPy's
        digest.update(f"array:{getattr(value, 'dtype', '')}:{getattr(value, 'shape', '')}:".encode() + value.tobytes())
    else:
        digest.update(f"object:{type(value).__qualname__}:".encode())
        _add(digest, getattr(value, "__dict__", {}))
