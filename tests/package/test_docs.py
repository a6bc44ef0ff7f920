"""The documentation: links lead somewhere, what it lists is all there is, and the site fetches nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from conftest import BIN, ROOT

from beco.cli import app
from beco.schema import Config, Section
from beco.schema.stage1 import LOCALISERS, options_of

HOOKS = ROOT / "docs" / "hooks"
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "results/*.md", "config/*.md", "tests/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^()\s#:]*)(?:#([^()\s]*))?\)")


def text_of(page: Path) -> str:
    """A page without what stands in its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for path, anchor in LINK.findall(text_of(page)):
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.name}: {path}: no such file"
        if anchor and target.name != "reference.md":
            assert anchor in anchors(target), f"{page.name}: {path}: no heading #{anchor}"


def test_every_page_is_in_the_navigation() -> None:
    def leaves(part: Any) -> Iterator[str]:
        if isinstance(part, str):
            yield part
        for inner in part if isinstance(part, list) else part.values() if isinstance(part, dict) else []:
            yield from leaves(inner)

    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    elsewhere = {"index.md", "changelog.md", "measured.md", "outputs.md", "corpus.md"}  # docs/hooks/site.py
    assert set(leaves(settings["nav"])) == {page.name for page in (ROOT / "docs").glob("*.md")} | elsewhere


# --- what is listed is what there is ------------------------------------------------------------------------


def sections(section: type[Section]) -> Iterator[type[Section]]:
    """A section of the schema and those below it."""
    yield section
    parts = [field.annotation for field in section.model_fields.values()]
    while parts:
        part = parts.pop()
        parts += get_args(part)
        if isinstance(part, type) and issubclass(part, Section):
            yield from sections(part)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    words = [str(BIN / "mkdocs"), "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "true"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_key_has_type_default_and_meaning() -> None:
    done = subprocess.run([sys.executable, str(HOOKS / "reference.py")], capture_output=True, text=True, check=True)
    tables = {part.split("\n")[0]: part for part in done.stdout.split("## ")[1:]}
    own = {one for one in map(options_of, LOCALISERS.files()) if one.model_fields}
    assert len(own) > 5 and "Options of rib" in tables
    for section in {*sections(Config), *own}:
        table = tables["The file" if section is Config else section.__name__]
        cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line.startswith("| `")]
        assert [row[0].strip(" `") for row in cells] == list(section.model_fields)
        for row in cells:
            assert len(row) == 4 and all(cell.strip() for cell in row), row
            assert "any value" not in row[1], row


def test_ranges_and_defaults_are_the_schemas() -> None:
    done = subprocess.run([sys.executable, str(HOOKS / "reference.py")], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()

    def row(key: str, *parts: str) -> bool:
        return any(line.startswith(f"| `{key}` |") and all(part in line for part in parts) for line in lines)

    assert row("val_share", "number > 0, < 1", "`0.2`")
    assert row("online_threshold", "number 0 to 1", "`0.95`")
    assert row("overlap", "`file`, `area`", "`file`")
    assert row("schedule", "[Schedule](#schedule)", "`{epochs: 80}`")
    assert row("recipe", "`beco`, `cotraining`, `single`", "required")
    assert row("encoders", "names, each with [Encoder](#encoder)", "`{}`")
    assert row("sources", "names, each with [Source](#source)", "`{cam: {}}`")


def test_every_key_is_in_the_site(site: Path) -> None:
    page = (site / "reference.html").read_text(encoding="utf-8")
    for section in set(sections(Config)):
        for key in section.model_fields:
            assert f"<code>{key}</code>" in page


def test_every_rule_is_listed() -> None:
    found = set()
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        found |= set(
            re.findall(
                r"^rule (\w+):|^use rule \w+ as (\w+) with", path.read_text(encoding="utf-8"), flags=re.MULTILINE
            )
        )
    rules = {name for pair in found for name in pair if name}
    listed = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")))
    assert len(rules) > 20 and rules <= listed


def test_commands_that_are_named_exist() -> None:
    known = {"--help", *(typer.main.get_command(app).commands)}  # type: ignore[attr-defined]
    named = set()
    for page in PAGES:
        named |= set(re.findall(r"(?:^(?:\$ )?|`)beco ([a-z-]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert "init" in named and named <= known


# --- others who read it ---------------------------------------------------------------------------------------


def test_the_site_fetches_nothing(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(?:https?:)?//", text), page
        assert not re.search(r"<link[^>]*rel=\"?(?:stylesheet|preconnect|icon)[^>]*href=\"?(?:https?:)?//", text), page
        assert 'class="mermaid"' not in text, f"{page}: the theme would fetch mermaid to draw it"


def test_the_catalog_of_workflows_finds_what_it_reads() -> None:
    """As its generator looks: words in the README, a settings file, and instructions in config/README.md."""
    assert "snakemake workflow" in (ROOT / "README.md").read_text(encoding="utf-8").lower()
    settings = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))
    assert settings["usage"]["report"] is True
    assert (ROOT / "config" / "README.md").is_file() and (ROOT / "workflow" / "Snakefile").is_file()


def test_the_citation_names_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(key in cited for key in ("cff-version", "message", "title", "authors"))
