"""The shape of the code: how many modules, how long, how they import each other, and words that it should not use.

    python benches/house.py [TREE ...] [--json benches/results/house.json]

Prints a column for each tree (a checkout; default: this one). Imports are read from the text, lazy ones and those for
types too; a circle is a set of modules, or of packages, each of which can be reached from each.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "qrobust"
SMALL, LARGE = 40, 400
# Words of a dialect, by what the field says instead.
BANNED = {
    "twin": "float model, OnnxModule, float artifact",
    "doubt": "sanity check",
    "liar": "false number",
    "craft": "attack, perturb",
    "hold": "frozen model",
    "held": "frozen model",
    "room": "package",
    "shelf": "folder",
    "camera": "uint8 input",
    "contestant": "artifact",
    "race": "bench",
    "told": "reason, text",
    "material": "images, sources",
    "parting": "first difference",
    "placed": "on the device",
    "said": "text, options",
    "kept": "files, result",
    "routes": "networks of an attack",
    "routed": "networks of an attack",
}
Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Files of the package by dotted name below it; the package itself is ""."""
    top = root / PACKAGE
    paths = {path.relative_to(top).with_suffix(""): path for path in top.rglob("*.py")}
    return {".".join(p for p in name.parts if p != "__init__"): path for name, path in sorted(paths.items())}


def imports(root: Path = ROOT) -> Graph:
    """Which modules of the package each one imports, wherever in it."""
    known = modules(root)
    return {name: set(_imported(name, path, known)) - {name} for name, path in known.items()}


def _imported(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    package = [PACKAGE, *name.split(".")] if name else [PACKAGE]
    if path.stem != "__init__":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            yield from (found for one in node.names for found in _ours(f"{source}.{one.name}", source, known))
        elif isinstance(node, ast.Import):
            yield from (found for one in node.names for found in _ours(one.name, one.name, known))


def _ours(whole: str, source: str, known: Mapping[str, Path]) -> Iterator[str]:
    for dotted in (whole, source):
        if dotted == PACKAGE or dotted.startswith(f"{PACKAGE}."):
            name = dotted[len(PACKAGE) + 1 :]
            if name in known:
                yield name
                return


def below_root(graph: Graph) -> Graph:
    """Without the package itself, which names what users call and loads it when asked; others read its version."""
    return {name: read - {""} for name, read in graph.items() if name}


def packages(graph: Graph) -> Graph:
    """The graph of the top level: a package, or a module that lies in none."""
    found: Graph = {}
    for name, read in graph.items():
        top = name.split(".")[0]
        found.setdefault(top, set()).update({one.split(".")[0] for one in read} - {top})
    return found


def circles(graph: Graph) -> list[list[str]]:
    """Sets of more than one node that all reach each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def chain(graph: Graph) -> list[str]:
    """The longest way along imports, by one way through each circle."""
    inside = {node: number for number, nodes in enumerate(circles(graph)) for node in nodes}
    best: dict[str, list[str]] = {}

    def longest(node: str, seen: frozenset[str]) -> list[str]:
        if node not in best:
            others = [
                other
                for other in graph.get(node, ())
                if other not in seen and (node not in inside or inside.get(other) != inside[node])
            ]
            best[node] = [node, *max((longest(other, seen | {node}) for other in others), key=len, default=[])]
        return best[node]

    return max((longest(node, frozenset()) for node in graph), key=len)


def banned(paths: Iterable[Path]) -> dict[str, int]:
    """How often each banned word is part of a name in the code; comments and texts do not count."""
    counts = dict.fromkeys(BANNED, 0)
    for path in paths:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.NAME:
                parts = re.findall(r"[a-z]+", re.sub(r"([A-Z])", r"_\1", token.string).lower())
                for word in BANNED:
                    counts[word] += sum(part in (word, f"{word}s", f"{word}ed", f"{word}ing") for part in parts)
    return counts


def measure(root: Path) -> dict[str, object]:
    """Everything of one tree, JSON-ready."""
    files = modules(root)
    lines = {name: sum(bool(line.strip()) for line in path.read_text().splitlines()) for name, path in files.items()}
    graph = imports(root)
    readers = {name: sum(name in read for read in graph.values()) for name in graph}
    top = packages(below_root(graph))
    test_lines = sum(
        bool(line.strip())
        for path in (root / "tests").rglob("*.py")
        if "fixtures" not in path.parts
        for line in path.read_text().splitlines()
    )
    below = below_root(graph)
    longest = chain(below)
    return {
        "files": len(files),
        "lines": sum(lines.values()),
        "median lines": int(median(lines.values())),
        f"files under {SMALL} lines": sum(count < SMALL for count in lines.values()),
        f"files over {LARGE} lines": sum(count > LARGE for count in lines.values()),
        "floors (longest chain of packages)": len(chain(top)),
        "longest chain of modules": len(longest),
        "modules with a single importer": sum(count == 1 for count in readers.values()),
        "circles of modules": len(circles(below)),
        "circles of packages": len(circles(top)),
        "banned words in names": sum(banned(files.values()).values()),
        "lines of tests": test_lines,
    }


def main() -> None:
    """Print, and save if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="*", type=Path, default=[ROOT])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = {str(tree): measure(tree) for tree in asked.trees}
    for row in next(iter(found.values())):
        print(f"{row:<38}", *(f"{values[row]!s:>9}" for values in found.values()))
    for tree in asked.trees:
        print(f"\n{tree}", *(f"  circle: {' '.join(one)}" for one in circles(below_root(imports(tree)))), sep="\n")
        print("  banned:", {word: n for word, n in banned(modules(tree).values()).items() if n})
    if asked.json:
        import record

        commits = {
            record.commit(tree.resolve()): values for tree, values in zip(asked.trees, found.values(), strict=True)
        }
        record.write_json(asked.json, {"commit": record.commit(), "trees": commits})


if __name__ == "__main__":
    main()
