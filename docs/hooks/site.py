"""What MkDocs is told beyond `docs/`: pages that live elsewhere in the repository, and the text of files they link to.

Every page stands once, where a reader of the repository looks for it, with links that work there. Here README.md
becomes the front page, `results/measured.md` and others join it, and each link to another file of the repository leads
to a copy.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "results/measured.md": "measured.md",
    "results/README.md": "outputs.md",
    "tests/corpus.md": "corpus.md",
}
"""Pages from elsewhere in the repository, and their place in the site."""
LINK = re.compile(r"(\]\()([^()\s#:]+)((?:#[^()\s]*)?\))")
"""`](target#anchor)` of a link or a picture that leads nowhere outside: a target with a colon is an address."""
PICTURES = (".png", ".jpg", ".svg")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".csv": "text"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere, and all files that pages link to."""
    for path, place in PAGES.items():
        files.append(File.generated(config, place, content=(ROOT / path).read_text(encoding="utf-8")))
    for page in [file for file in files if file.is_documentation_page()]:
        for _, target, _ in LINK.findall(page.content_string):
            path = _path(_origin(page.src_uri), target)
            place = _place(path)
            if files.get_file_from_path(place) is None and (ROOT / path).is_file():
                files.append(_copy(config, path, place))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that hold in the repository into those that hold in the site; put in the keys."""
    if page.file.src_uri.startswith("source/"):
        return markdown
    if page.file.src_uri == "reference.md":
        markdown = markdown.replace(reference.MARK, reference.keys())
    origin, here = _origin(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        place = posixpath.relpath(_place(_path(origin, link[2])), here or ".")
        return f"{link[1]}{place}{link[3]}"

    return LINK.sub(moved, markdown)


def _origin(place: str) -> str:
    """Where in the repository a page of the site comes from."""
    return next((path for path, other in PAGES.items() if other == place), f"docs/{place}")


def _path(origin: str, target: str) -> str:
    """The path in the repository of what a page links to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def _place(path: str) -> str:
    """Where in the site a file of the repository stands."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path.endswith(PICTURES) else f"source/{path}.md"


def _copy(config: MkDocsConfig, path: str, place: str) -> File:
    """A picture as it is; of a text a page that shows it, which the search leaves out."""
    if place == path:
        return File.generated(config, place, abs_src_path=os.fspath(ROOT / path))
    text, language = (ROOT / path).read_text(encoding="utf-8"), LANGUAGES.get(Path(path).suffix, "text")
    shown = f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n~~~~~~{language}\n{text}\n~~~~~~\n"
    return File.generated(config, place, content=shown)
