"""Builds the C core into the wheel: a hatchling build hook around cffi's API mode.

The module is compiled in a scratch directory and renamed into the package.  Renamed, not copied over:
overwriting a shared object that a running process has mapped can crash that process.
"""

import importlib.machinery
import re
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from cffi import FFI
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).parent
PACKAGE = HERE.parent
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def constants() -> str:
    """Every AU_ constant of the kernel ABI header, declared for cffi; the compiler knows the values."""
    text = re.sub(r"/\*.*?\*/", "", (HERE / "uapi.h").read_text(), flags=re.S)
    names = re.findall(r"^(?:enum \{ |    )(AU_[A-Z0-9_]+) = ", text, flags=re.M)
    names += re.findall(r"^#define (AU_MAX_[A-Z_]+) ", text, flags=re.M)
    return "".join(f"#define {name} ...\n" for name in names)


def compile_core(directory: Path) -> Path:
    """Compile the core into `directory`; returns the shared object."""
    ffi = FFI()
    declarations = (HERE / "uring.cdef.h").read_text()
    ffi.cdef(re.sub(r"/\*.*?\*/", "", declarations, flags=re.S) + constants())
    ffi.set_source(
        "aiouring._uring",
        (HERE / "uring.c").read_text(),
        include_dirs=[str(HERE)],
        extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter"],
        py_limited_api=not FREE_THREADED,
        define_macros=[] if FREE_THREADED else [("Py_LIMITED_API", "0x030b0000")],  # for objects.c
    )
    return Path(ffi.compile(tmpdir=str(directory), verbose=False))


def install(built: Path) -> Path:
    """Move the shared object into the package, under the one name that import will find first."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0] if FREE_THREADED else ".abi3.so"
    target = PACKAGE / f"_uring{suffix}"
    for old in PACKAGE.glob("_uring*.so"):
        if old != target:
            old.unlink()
    fresh = target.with_name(target.name + ".new")
    shutil.copy(built, fresh)
    fresh.rename(target)
    return target


class Hook(BuildHookInterface[Any]):
    """Compiles the core whenever a wheel, editable or not, is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and tag the wheel with the one ABI it was compiled for."""
        if not sys.platform.startswith("linux"):
            raise RuntimeError(f"aiouring needs Linux (io_uring is a Linux interface), not {sys.platform}")
        with tempfile.TemporaryDirectory() as directory:
            target = install(compile_core(Path(directory)))
        build_data["pure_python"] = False
        build_data["artifacts"].append(f"aiouring/{target.name}")
        if FREE_THREADED:
            build_data["infer_tag"] = True
        else:
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"cp311-abi3-{platform}"
