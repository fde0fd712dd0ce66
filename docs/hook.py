"""A hook of MkDocs: documents lie all over the repository, and links between them must hold on the site too.

Documents outside of docs/ become pages under their path, and other files that a page links to are copied likewise. A
link to a folder, of which there is no page, is left as text. README.md is the page `overview.md`, since
index.md is the site's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)((?:#[^)\s]*)?)(?=\))")
FOLDER_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#:]+/)\)")
OUTSIDE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "export/README.md", "recipes/README.md",
           "benches/README.md")  # fmt: skip
RENAMED = {"README.md": "overview.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the documents outside of docs/, and what any document links to, once each."""
    from mkdocs.structure.files import File

    documents = [*OUTSIDE, *(f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md"))]
    wanted = dict.fromkeys([*OUTSIDE, *(path for one in documents for path in linked(one))])
    for path in wanted:
        if not path.startswith("docs/"):
            files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links as they hold on the site."""
    return rewritten(markdown, in_repository(page.file.src_uri))


def rewritten(markdown: str, document: str) -> str:
    """The text of a document whose links lead from its page to pages. document: its path in the repository."""
    here = PurePosixPath(site_path(document)).parent

    def moved(found: re.Match[str]) -> str:
        target = resolved(document, found[1])
        return found[0] if target is None else os.path.relpath(site_path(target), here or ".") + found[2]

    return LINK.sub(moved, FOLDER_LINK.sub(r"\1", markdown))


def linked(document: str) -> Iterator[str]:
    """Files of the repository that a document links to."""
    for found in LINK.finditer((ROOT / document).read_text(encoding="utf-8")):
        if (target := resolved(document, found[1])) is not None:
            yield target


def resolved(document: str, link: str) -> str | None:
    """A relative link as path in the repository; None for what is no file there."""
    path = (ROOT / document).parent / link
    inside = path.is_file() and path.resolve().is_relative_to(ROOT)
    return path.resolve().relative_to(ROOT).as_posix() if inside else None


def site_path(path: str) -> str:
    """A path of the repository as that of a page or file."""
    return RENAMED.get(path, path.removeprefix("docs/"))


def in_repository(page: str) -> str:
    """The other way round."""
    back = {new: old for old, new in RENAMED.items()}
    return back.get(page) or (page if page in OUTSIDE else f"docs/{page}")
