"""Holds the house rules that a machine can hold: floors, sizes, mirrors, docstrings, and what is never used."""

import ast
import re
from pathlib import Path

import pytest

import aiouring

pytestmark = pytest.mark.needs_no_ring

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "aiouring"

#: The floors, lowest first; a module imports from its own floor and those below it.
FLOORS = [
    ["_uring", "_objects"],
    [
        "_errors",
        "_abi",
        "_file_flags",
        "_setup",
        "_restrictions",
        "_ring",
        "_waits",
        "_peeks",
        "_features",
        "_probe",
        "_address",
    ],
    [
        "_line",
        "_lease",
        "_retired_buffers",
        "_registered_memory",
        "_fixed_buffer",
        "_provided_buffer",
        "_bundle",
        "_direct_descriptor",
    ],
    [
        "_registered_buffers",
        "_registered_files",
        "_private_buffers",
        "_watch",
        "_shortage",
        "_buffer_ring",
        "_incremental",
        "_memory_region",
        "_registry",
    ],
    [
        "_request",
        "_slot_requests",
        "_inbox",
        "_takers",
        "_turns",
        "_private_receives",
        "_insistence",
        "_refusals",
        "_messages",
        "_received_message",
        "_multishot",
        "_receiving_messages",
        "_reading",
        "_standing",
        "_accepting",
        "_polling",
        "_sending",
        "_chaining",
        "_claims",
        "_driver",
    ],
    [
        "_stat",
        "_paths",
        "_late_requests",
        "_range_verbs",
        "_attribute_verbs",
        "_path_verbs",
        "_process_verbs",
        "_futex_verbs",
        "_linked",
        "_receive_stream",
        "_standing_streams",
        "_listener_verbs",
        "_descriptor_verbs",
        "_verbs",
        "_file_verbs",
        "_vector_verbs",
        "_socket_verbs",
        "_message_verbs",
        "_option_verbs",
        "_inbox_verbs",
        "_zero_copy_verbs",
        "_registration_verbs",
        "_direct_verbs",
        "_async_ring",
        "_synchronous_registrations",
        "_synchronous_ring",
    ],
    ["_tls", "_tls_sending", "_tls_receiving"],
    [
        "_framing",
        "_connection",
        "_default_ring",
        "_opening",
        "_listening",
        "_stream_adapter",
        "_server",
        "_transport",
        "_protocols",
        "_file_object",
        "_file_system",
        "_cached_reads",
        "_thread_descriptor",
        "_raw_file",
        "_read_ahead",
        "_write_behind",
        "_binary_reading",
        "_binary_file",
        "_block_pool",
        "_direct_file",
        "_decoding",
        "_text_file",
        "_open",
        "_path_functions",
        "_path",
        "_copy",
    ],
    ["__init__", "__main__"],
]
MAY_KNOW_ASYNCIO = {
    *("_turns", "_claims", "_driver", "_multishot", "_sending", "_chaining", "_async_ring"),
    *FLOORS[-3],
    *FLOORS[-2],
}
LONGEST_FILE = 400
LONGEST_FUNCTION = 70


def modules() -> list[Path]:
    """Every Python module of the package but the build hook."""
    return sorted(PACKAGE.glob("*.py"))


def imports(tree: ast.AST, *, typing_too: bool) -> set[str]:
    """What a module imports; without `typing_too`, not what only type checkers see."""
    found = set()
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing_too
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_imports_go_down(path: Path) -> None:
    """A module imports nothing from a floor above its own."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    assert path.stem in floor, f"{path.stem} stands on no floor: add it to FLOORS"
    for name in imports(ast.parse(path.read_text()), typing_too=False):
        if name.startswith("aiouring."):
            other = name.removeprefix("aiouring.")
            assert floor[other] <= floor[path.stem], f"{path.stem} imports {other} from above"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_only_the_loop_floors_know_asyncio(path: Path) -> None:
    """The floors below the loop do not import asyncio."""
    if path.stem not in MAY_KNOW_ASYNCIO:
        assert "asyncio" not in imports(ast.parse(path.read_text()), typing_too=False)


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_sizes_and_docstrings(path: Path) -> None:
    """Files and functions are short, and everything public says what it is."""
    text = path.read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= LONGEST_FILE, f"{path.name} has {text.count(chr(10))} lines"
    assert ast.get_docstring(tree), f"{path.name} does not say what it owns"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            overload = any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)
            if not node.name.startswith("_") and not overload:
                assert ast.get_docstring(node), f"{path.name}:{node.lineno} {node.name} has no docstring"
            if not isinstance(node, ast.ClassDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                size = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                assert size <= LONGEST_FUNCTION, f"{path.name}:{node.lineno} {node.name} has {size} lines"


def test_every_module_has_its_tests() -> None:
    """Tests mirror modules."""
    for path in modules():
        if path.stem != "__init__":
            assert (ROOT / "tests" / f"test_{path.stem.strip('_')}.py").exists(), path.stem


def test_every_test_says_what_it_holds() -> None:
    """Each test has a docstring."""
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                assert ast.get_docstring(node), f"{path.name}:{node.lineno} {node.name}"


def test_no_rooms_without_a_purpose() -> None:
    """No module is called utils, helpers, common or constants."""
    names = {
        path.stem.strip("_") for folder in ("aiouring", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    }
    assert not names & {"utils", "util", "helpers", "common", "constants", "misc"}


def test_references_to_none_are_counted() -> None:
    """Python's headers since 3.12 return None, True and False uncounted, also in a module that is to run on 3.11."""
    for path in sorted((PACKAGE / "_native").glob("*.[ch]")):
        assert "Py_RETURN_" not in re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S), path.name


def test_e13_what_is_never_used() -> None:
    """REGISTER_EVENTFD_ASYNC loses wake-ups, SQPOLL keeps root's rights, legacy buffers corrupt: not in our code."""
    sources = "".join(path.read_text() for path in sorted((PACKAGE / "_native").glob("*.c")))
    code = re.sub(r"/\*.*?\*/", "", sources, flags=re.S)
    for never in ("EVENTFD_ASYNC", "SQPOLL", "PROVIDE_BUFFERS", "RESIZE_RINGS"):
        assert never not in code
    assert "REGISTER_EVENTFD_ASYNC" not in (PACKAGE / "_native" / "uapi.h").read_text()


def test_public_names() -> None:
    """Everything in __all__ is there, and nothing public is missing from it."""
    for name in aiouring.__all__:
        assert hasattr(aiouring, name)
    public = {
        name
        for name, value in vars(aiouring).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("aiouring.")
    }
    assert public == set(aiouring.__all__)


def test_version_is_said_once_and_the_same() -> None:
    """pyproject.toml and the package agree about the version, and the changelog has it."""
    found = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), flags=re.M)
    assert found
    assert found[1] == aiouring.__version__
    assert f"## [{aiouring.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
