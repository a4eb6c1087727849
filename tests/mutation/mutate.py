"""Damage to a file's bytes, drawn from a seed: what disks, copies and people do, and what fuzzers find most with."""

from __future__ import annotations

import random

_DIGITS = b"0123456789-.eE+{}[]\",:' \n"


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Return the content with one kind of damage."""
    data = bytearray(content)
    kind = rng.choice((_flip, _flip, _flip, _flips, _bytes, _text, _text, _cut, _zero, _drop, _repeat, _insert))
    kind(data, rng)
    return bytes(data)


def _flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _flips(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((2, 4, 16))):
        _flip(data, rng)


def _bytes(data: bytearray, rng: random.Random) -> None:
    """Put 1 to 8 bytes of an extreme value anywhere: sizes and offsets of binary formats."""
    at, length = rng.randrange(len(data)), rng.choice((1, 2, 4, 8))
    data[at : at + length] = rng.choice((b"\xff", b"\0", b"\x7f", b"\x80"))[:1] * length


def _text(data: bytearray, rng: random.Random) -> None:
    """Put a character of numbers and structure in the place of another."""
    data[rng.randrange(len(data))] = rng.choice(_DIGITS)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _zero(data: bytearray, rng: random.Random) -> None:
    """Empty a block, as a file system does after a crash."""
    at, length = rng.randrange(len(data)), rng.choice((16, 512, 4096))
    data[at : at + length] = bytes(len(data[at : at + length]))


def _drop(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 80, 2880))]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at, length = rng.randrange(len(data)), rng.choice((1, 80, 512))
    data[at:at] = data[at : at + length]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.choice((1, 3, 64)))
