"""Files and metadata with random errors, by seed."""

import pickle
import random

ODD = (None, -1, 0, 10**15, 10**400, 1.5, True, "x", "", [], {}, [None], {"a": {}})


class Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def damaged(content, seed):
    """Content that is truncated, or has some bytes changed."""
    rng = random.Random(seed)
    if rng.random() < 0.3:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(rng.choice((1, 3, 30))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def strange(path):
    """Contents of other files: nothing, text, JSON, a pickle that runs code."""
    return (
        b"",
        b"\n",
        b"some notes of mine",
        b"[1, 2]",
        b"[" * 100_000,
        b"\x00\xff" * 50,
        b"PK\x03\x04",
        pickle.dumps(Touch(path)),
    )


def odd_value(tree, seed):
    """A copy of a tree of dicts and lists with one value removed or replaced."""
    rng = random.Random(seed)
    place = rng.choice(list(_places(tree)))
    return _put(tree, place, rng.choice(ODD), rng.random() < 0.2)


def _places(tree, place=()):
    yield place
    if isinstance(tree, dict):
        for key in tree:
            yield from _places(tree[key], (*place, key))
    elif isinstance(tree, (list, tuple)):
        for index in range(len(tree)):
            yield from _places(tree[index], (*place, index))


def _put(tree, place, value, is_gone):
    if not place:
        return value
    key, *rest = place
    if isinstance(tree, dict):
        changed = {**tree, key: _put(tree[key], rest, value, is_gone)}
        return {k: v for k, v in changed.items() if k != key or rest or not is_gone}
    parts = list(tree)
    parts[key] = _put(parts[key], rest, value, is_gone)
    return type(tree)(parts)
