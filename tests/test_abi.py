"""Tests of the kernel's numbers: one source, and faces that list exactly what was compiled."""

import ast
import enum
import re
from pathlib import Path

import pytest

import aiouring
from aiouring import CompletionFlags, Features, Opcode, Registration, SetupFlags, SubmissionFlags
from aiouring._uring import ffi, lib

pytestmark = pytest.mark.needs_no_ring

PACKAGE = Path(aiouring.__file__).parent
NATIVE = PACKAGE / "_native"

FACES: list[tuple[type[enum.IntEnum] | type[enum.IntFlag], str]] = [
    (Opcode, "AU_OP_"),
    (SetupFlags, "AU_SETUP_"),
    (Features, "AU_FEAT_"),
    (CompletionFlags, "AU_CQE_F_"),
    (SubmissionFlags, "AU_SQE_"),
]


def header() -> str:
    """The ABI header without its comments."""
    return re.sub(r"/\*.*?\*/", "", (NATIVE / "uapi.h").read_text(), flags=re.S)


def header_constants() -> set[str]:
    """The names of all numbers in the ABI header."""
    return set(re.findall(r"\b(AU_[A-Z0-9_]+) =", header())) | set(re.findall(r"#define (AU_\w+) ", header()))


@pytest.mark.parametrize(("face", "prefix"), FACES)
def test_enums_take_their_values_from_c(face: type[enum.IntEnum] | type[enum.IntFlag], prefix: str) -> None:
    """Each member has the value of the constant with its name, and no constant lacks its member."""
    compiled = {name.removeprefix(prefix): getattr(lib, name) for name in dir(lib) if name.startswith(prefix)}
    assert {name: member.value for name, member in face.__members__.items()} == compiled


@pytest.mark.parametrize(("face", "prefix"), FACES)
def test_every_constant_of_the_header_has_its_member(
    face: type[enum.IntEnum] | type[enum.IntFlag], prefix: str
) -> None:
    """No constant of the ABI header was left out of its enum, or of the compiled module."""
    named = {name.removeprefix(prefix) for name in header_constants() if name.startswith(prefix)}
    assert named == set(face.__members__)


def test_registrations_take_their_values_from_c() -> None:
    """Each registration opcode of the ABI header has its member, by the kernel's name."""
    named = {name.removeprefix("AU_") for name in header_constants() if re.match(r"AU_(UN)?REGISTER_", name)}
    assert named == set(Registration.__members__)
    assert all(member.value == getattr(lib, f"AU_{name}") for name, member in Registration.__members__.items())


def test_opcodes_are_gapless() -> None:
    """The opcodes are the kernel's, from 0 on without a gap."""
    assert sorted(Opcode) == list(range(len(Opcode)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AU_OP_READ", 22),
        ("AU_OP_RECV", 27),
        ("AU_OP_ASYNC_CANCEL", 14),
        ("AU_OP_SEND_ZC", 47),
        ("AU_OP_PIPE", 62),
        ("AU_SETUP_R_DISABLED", 1 << 6),
        ("AU_SETUP_SINGLE_ISSUER", 1 << 12),
        ("AU_SETUP_DEFER_TASKRUN", 1 << 13),
        ("AU_SETUP_NO_SQARRAY", 1 << 16),
        ("AU_FEAT_NATIVE_WORKERS", 1 << 9),
        ("AU_CQE_F_NOTIF", 1 << 3),
        ("AU_REGISTER_PBUF_RING", 22),
        ("AU_MAX_TRANSFER", 0x7FFFF000),
    ],
)
def test_a_sample_of_values(name: str, value: int) -> None:
    """A few values against the kernel's documentation: a slip in the header's rows would shift some."""
    assert getattr(lib, name) == value


SYSTEM_HEADER = Path("/usr/include/linux/io_uring.h")


@pytest.mark.skipif(not SYSTEM_HEADER.exists(), reason=f"{SYSTEM_HEADER} is not installed")
def test_opcodes_are_those_of_the_system_header() -> None:
    """As far as the system's own header goes, both count the operations alike."""
    body = re.search(r"enum io_uring_op \{(.*?)\};", SYSTEM_HEADER.read_text(), flags=re.S)
    assert body is not None
    names = re.findall(r"^\s*IORING_OP_(\w+)", body[1], flags=re.M)
    theirs = {name: number for number, name in enumerate(names) if name != "LAST"}
    assert {name: theirs[name] for name in Opcode.__members__ if name in theirs}.items() <= {
        name: member.value for name, member in Opcode.__members__.items()
    }.items()


@pytest.mark.parametrize(
    ("struct", "size"),
    [("au_sqe", 64), ("au_cqe", 16), ("au_params", 120), ("au_buf", 16), ("au_buf_reg", 40), ("au_probe", 2064)],
)
def test_struct_sizes(struct: str, size: int) -> None:
    """The structs have the kernel's sizes."""
    assert ffi.sizeof(f"struct {struct}") == size


# ---- the typed face --------------------------------------------------------------------------------


def face_of(name: str) -> ast.ClassDef:
    """A class of `_uring.pyi`."""
    tree = ast.parse((PACKAGE / "_uring.pyi").read_text())
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def members(name: str) -> set[str]:
    """What a class of `_uring.pyi` declares."""
    found = set()
    for node in face_of(name).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return found


def test_typed_face_lists_what_was_compiled() -> None:
    """`_uring.pyi` has every function and constant of the compiled module, and no other."""
    assert members("_Lib") == set(dir(lib))


def test_typed_functions_take_what_was_compiled() -> None:
    """Each function of `_uring.pyi` takes as many arguments as the compiled one."""
    for node in face_of("_Lib").body:
        if isinstance(node, ast.FunctionDef):
            compiled = ffi.typeof(getattr(lib, node.name))
            assert len(node.args.posonlyargs) - 1 == len(compiled.args), node.name


@pytest.mark.parametrize(("face", "struct"), [("CRing", "au_ring"), ("CBuffers", "au_buffers"), ("CGroup", "au_group")])
def test_typed_structs_have_what_was_compiled(face: str, struct: str) -> None:
    """Each field that `_uring.pyi` gives a struct is there."""
    assert members(face) <= {name for name, _ in ffi.typeof(struct).fields}


def test_typed_ffi_exists() -> None:
    """Each name that `_uring.pyi` gives `ffi` is there."""
    assert all(hasattr(ffi, name) for name in members("_FFI"))


def test_typed_kernel_is_complete() -> None:
    """The replaceable system calls are three, as declared."""
    assert members("_Kernel") == {name for name, _ in ffi.typeof("struct au_kernel").fields}
