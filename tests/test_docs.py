"""Tests that the pages in docs/ are true: the program on each page runs as printed.

The convention: the ```python blocks of a page are, in their order, one program.  It runs in a fresh interpreter and
an empty folder, asserts what the page claims, and leaves nothing behind that Python would warn of.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import aiouring

PAGES = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))


def program(page: str) -> str:
    """The Python blocks of a page as one program, whose line numbers are the page's."""
    lines = []
    language = ""
    for line in page.splitlines():
        if line.startswith("```"):
            language = "" if language else line.removeprefix("```").strip() or "text"
            line = "```"
        lines.append(line if language == "python" and line != "```" else "")
    return "\n".join(lines) + "\n"


#: A page of tables has no program.
PROGRAMS = [page for page in PAGES if program(page.read_text()).strip()]


@pytest.mark.needs_no_ring
def test_there_are_programs() -> None:
    """The folder was found: without pages, nothing below would be tested."""
    assert PROGRAMS


@pytest.mark.parametrize("page", PROGRAMS, ids=lambda page: page.stem)
def test_the_program_on_the_page_runs(page: Path, tmp_path: Path) -> None:
    """The page's program ends by itself, with nothing on stderr; a traceback has the page's line numbers."""
    script = tmp_path / f"{page.stem}.py"
    script.write_text(program(page.read_text()))
    folder = tmp_path / "empty"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.mark.needs_no_ring
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_the_page(page: Path) -> None:
    """What the page links to within the project is there."""
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.needs_no_ring
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_of_the_page(page: Path) -> None:
    """Every method that the page names with its class exists."""
    for kind, name in re.findall(r"`(\w+)\.(\w+)\(", page.read_text()):
        if kind in aiouring.__all__:
            assert hasattr(getattr(aiouring, kind), name), f"{page.name} names {kind}.{name}()"
