"""Builds the CPU kernel, and makes README's links absolute; all else is in setup.cfg.

The kernel is one plain library per instruction set, which `dwmgrad.kernels.native` loads by ctypes.
It needs no Python, so a wheel serves every Python of its platform. Without a C compiler the package
installs without it.
"""

import configparser
import re
import sys
import sysconfig
import zlib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
SOURCE = "src/dwmgrad/kernels/native.c"
X86 = sysconfig.get_platform().endswith(("x86_64", "amd64"))
# What torch asks of a CPU before it calls it by this name. The baseline is the platform's own.
SETS = {
    "baseline": [],
    "avx2": ["-mavx2"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
# No fast math, whatever CFLAGS says: NaN and infinities must be seen. No contraction: the same
# numbers on every CPU.
# OpenMP's calls are compiled in and not linked: they go to the library that torch has loaded.
FLAGS = ["-O3", "-g0", "-fno-fast-math", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-ffp-contract=off"]
FLAGS += ["-Xclang", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]
# Visual C++ knows only its own OpenMP library, so without: the kernel runs on one thread.
VISUAL_C_SETS = {"baseline": [], "avx2": ["/arch:AVX2"], "avx512": ["/arch:AVX512"]}
VISUAL_C_FLAGS = ["/O2", "/std:c11", "/fp:precise"]


class BuildLibraries(build_ext):
    """Builds libraries that are no Python modules."""

    def get_ext_filename(self, fullname: str) -> str:
        """Without the Python's version."""
        return fullname.replace(".", "/") + (".dll" if sys.platform == "win32" else ".so")

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Without a module's initializer."""
        return ext.export_symbols

    def build_extension(self, ext: Extension) -> None:
        """With the flags of its instruction set and of the compiler."""
        visual_c = self.compiler.compiler_type == "msvc"
        sets, flags = (VISUAL_C_SETS, VISUAL_C_FLAGS) if visual_c else (SETS, FLAGS)
        ext.extra_compile_args = [*flags, *sets[ext.name.rpartition("_")[2]]]
        if sys.platform == "linux":
            ext.extra_link_args = ["-Wl,--strip-all"]
        super().build_extension(ext)


class PlatformWheel(bdist_wheel):
    """For every Python of this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python 3, no ABI."""
        return "py3", "none", super().get_tag()[2]


def libraries() -> list[Extension]:
    """One for each instruction set of the processor."""
    return [
        Extension(
            f"dwmgrad.kernels.native_{name}",
            [SOURCE],
            depends=["setup.py"],
            # what it was built from; see `native.library`
            define_macros=[("DWMGRAD_SOURCE", f"{zlib.crc32((HERE / SOURCE).read_bytes())}u")],
            export_symbols=["dwmgrad_norms", "dwmgrad_source", "dwmgrad_update"],
            optional=True,
        )
        for name in SETS
        if X86 or name == "baseline"
    ]


def long_description() -> str:
    """README with links into the repository, or with file names where its address is not known."""
    config = configparser.ConfigParser()
    config.read(HERE / "setup.cfg", encoding="utf-8")
    lines = (line.partition(" = ") for line in config["metadata"]["project_urls"].splitlines())
    source = {name.strip(): address.strip() for name, _, address in lines}.get("Source")

    def absolute(link: re.Match) -> str:
        picture, text, target = link.groups()
        if "://" in target:
            return link[0]
        if source is None:
            return f"{text} (`{target}`)"
        return f"{picture}[{text}]({source}/{'raw' if picture else 'blob'}/HEAD/{target})"

    return re.sub(r"(!?)\[([^]]+)\]\(([^)]+)\)", absolute, (HERE / "README.md").read_text("utf-8"))


if __name__ == "__main__":
    setup(
        long_description=long_description(),
        long_description_content_type="text/markdown",
        ext_modules=libraries(),
        cmdclass={"build_ext": BuildLibraries, "bdist_wheel": PlatformWheel},
    )
