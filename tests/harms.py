"""What may be wrong with a file of keys and values, enumerated; and whether it was refused in one line."""

from __future__ import annotations

import copy
import json

from qrobust.errors import QrobustError
from qrobust.runtime import ArtifactError

HERE = '"@here@"'
MARKUP = "[/b][link=x]<script>alert(1)</script>|`$x$:smile:"
# What no key of any file may be, then what depends on the key.
NEVER = {"duplicated": None, "NaN": "NaN", "infinite": "-Infinity", "overflow": "1e999", "digits": "9" * 5000,
         "deep": "[" * 100_000}  # fmt: skip
SOMETIMES = {
    "missing": None, "null": "null", "truth": "true", "text": '"x"', "no text": '""', "list": "[]", "table": "{}",
    "huge": "1" + "0" * 30, "negative": "-1", "fraction": "0.5", "markup": json.dumps(MARKUP),
    "escape": '"\\u001b[2J\\nheld"', "half": '"\\ud800"', "nested": "[" * 200 + "]" * 200,
}  # fmt: skip
HARMS = NEVER | SOMETIMES
TEXT = {"text", "no text", "markup", "escape", "half"}
ANY = set(SOMETIMES)


def paths(value, path=()):
    """Every key of nested tables; of lists, and of tables whose parts are alike, the first place."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ())
    shapes = {tuple(part) if isinstance(part, dict) else part for _, part in pairs if not isinstance(part, list)}
    alike = len(pairs) > 1 and len(shapes) == 1 and isinstance(pairs[0][1], dict)
    for key, part in pairs[:1] if alike else pairs:
        yield (*path, key)
        yield from paths(part, (*path, key))


def harmed(value):
    """Path, harm and text of every case of a JSON value."""
    for path in paths(value):
        whole = copy.deepcopy(value)
        parent = whole
        for key in path[:-1]:
            parent = parent[key]
        own, parent[path[-1]] = json.dumps(parent[path[-1]]), "@here@"
        text, named = json.dumps(whole), f"{json.dumps(path[-1])}: {HERE}"
        for harm, raw in HARMS.items():
            if raw is not None:
                yield path, harm, text.replace(HERE, raw)
            elif harm == "duplicated" and isinstance(parent, dict):
                yield path, harm, text.replace(named, f"{named}, {named}").replace(HERE, own)
            elif harm == "missing":
                without = copy.copy(parent)
                del without[path[-1]]
                yield path, harm, text.replace(json.dumps(parent), json.dumps(without), 1)


def refused(read):
    """Whether reading is refused in one printable line; other errors are raised."""
    try:
        read()
    except (QrobustError, ArtifactError) as error:
        line = str(error)
        assert line.isprintable(), line
        return True
    return False


def wrong(cases, place, read, free):
    """Cases that were neither refused nor free, or that raised something else; and how many there were."""
    found, count = [], 0
    for path, harm, text in cases:
        count += 1
        place.write_bytes(text) if isinstance(text, bytes) else place.write_text(text)
        try:
            accepted = not refused(read) and not free(path, harm)
        except Exception as error:
            found.append((path, harm, f"{type(error).__name__}: {error}"[:300]))
        else:
            if accepted:
                found.append((path, harm, "accepted"))
    return found, count
