"""Changes of JSON, of bytes and of safetensors as disks, editors and attackers make them."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

__all__ = ["HOSTILE", "changed_bytes", "changed_document", "changed_json", "changed_safetensors"]

_DEEP = json.loads("[" * 70 + "]" * 70)
_NUMBERS = (0, 1, -1, 2, 3, 7, 2**31, 2**53 + 1, 2**62, 2**63, 2**64, -(2**63), 10**30)
_FLOATS = (0.0, -0.0, 0.5, 1.0, 1.5, -1e-300, 5e-324, 1e-12, 1e16, 1e290, 1.7e308, -1.7e308)
_TEXTS = (
    *("", " ", "x", "1", "-1", "nan", "inf", "null", "fp32", "exp_avg", "é", "日本", "a|b", "a\nb"),
    *("..", ".", "/", "../x", "/etc/passwd", "configs/../x", "\0", "\ud800", "\udc80", "x" * 5000),
    *("index.json", "state.json", "rank_00000.safetensors", "configs/resolved.json", "softmax"),
)
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [None], {"": 0}, {"a": 1}, [0] * 300, _DEEP),
    *(*_NUMBERS, *_FLOATS, *_TEXTS, float("nan"), float("inf")),
)
"""Values that replace another one."""


def changed_json(value: Any, rng: random.Random) -> Any:
    """Copies JSON data with one to three changes at random places."""
    result = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        result = _changed_once(result, rng)
    return result


def _changed_once(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.1:
        return _other(value, rng)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    action = rng.random()
    if action < 0.75:
        value[key] = _changed_once(value[key], rng)
    elif action < 0.85:
        del value[key]
    elif isinstance(value, dict):
        value[rng.choice([*_TEXTS, str(rng.randrange(99))])] = value[rng.choice(keys)]
    elif action < 0.95:
        value.insert(rng.randrange(len(value) + 1), value[rng.choice(keys)])
    else:
        rng.shuffle(value)
    return value


def _other(value: Any, rng: random.Random) -> Any:
    """A hostile value, or one near the value that is there."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and abs(value) < 1e300 and rng.random() < 0.4:
        near = (value + 1, value - 1, -value, value * 2, value / 2, float(value), value * 1.001)
        return rng.choice([*near, str(value)])
    return copy.deepcopy(rng.choice(HOSTILE))  # a later change may be inside it


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Copies bytes with a change as disks, editors and attackers make it."""
    place = rng.randrange(len(content) + 1)
    flood = rng.choice((b"[", b'{"a":', b"\0", b"9", b" ", b'"', b"\xff"))
    flipped = bytearray(content)
    for _ in range(rng.choice((1, 1, 4))):
        if flipped:
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return rng.choice(
        (
            content[:place],
            content[place:],
            bytes(flipped),
            bytes(flipped),
            content[:place] + rng.randbytes(rng.choice((1, 8, 64))) + content[place:],
            content[:place] + b"\0" * (len(content) - place),
            content[:place] + flood * rng.choice((1, 100, 100_000)) + content[place:],
            content[: place // 2] + content[place:],
            b"",
        )
    )


def changed_document(value: Any, rng: random.Random) -> bytes:
    """The bytes of a JSON file after a change of its values or its bytes."""
    if rng.random() < 0.8:
        return json.dumps(changed_json(value, rng)).encode()
    return changed_bytes(json.dumps(value).encode(), rng)


def changed_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Changes the header of a safetensors file, or its bytes anywhere."""
    (size,) = struct.unpack("<Q", content[:8])
    if rng.random() < 0.3:
        return changed_bytes(content, rng)
    header = changed_document(json.loads(content[8 : 8 + size]), rng)
    length = rng.choice((len(header), len(header), len(header), 0, 2**63, len(header) + 8))
    return struct.pack("<Q", length) + header + content[8 + size :]
