"""What setup.cfg cannot say: the native library, one object per instruction set, each with its own flags."""

import os
import platform
import tempfile
from concurrent.futures import ThreadPoolExecutor

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = "qlinear/csrc"
KERNELS = ["avx2", "avx512", "block", "int16", "kernels", "layout", "linear", "rows", "table", "threads"]
DECODER = ["attention", "dense", "fill", "input", "lanes", "pieces", "rowwise", "step", "team"]
HEADERS = [f"{name}.h" for name in [*KERNELS, "decoder"]] + [f"decoder_{name}.h" for name in DECODER]
# The kernels need -O3, but an explicit level wins: a sanitizer build at -O3 takes ten times as long.
OPTIMIZE = [] if "-O" in os.environ.get("CXXFLAGS", "") else ["-O3"]
BASELINE = ["-std=c++17", *OPTIMIZE, "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
# gcc's own AVX-512 headers trip its uninitialized-variable warnings.
QUIET = ["-Wno-uninitialized"] + ["-Wno-maybe-uninitialized"] * ("clang" not in os.environ.get("CXX", ""))
FLAGS = {
    "dispatch.cpp": [],
    "linear.cpp": [],
    "pack.cpp": [],
    "threads.cpp": [],
    "scalar.cpp": [],
    "avx2.cpp": ["-mavx2", "-mfma"],
    "avxvnni.cpp": ["-mavx2", "-mfma"],
    "avx512.cpp": [*AVX512, *QUIET],
    "avx512vnni.cpp": [*AVX512, "-mavx512vnni", *QUIET],
    "avx512bf16.cpp": [*AVX512, "-mavx512bf16", *QUIET],
    "decoder.cpp": [],
    "decoder_cache.cpp": [],
    "decoder_step.cpp": [],
    "decoder_scalar.cpp": [],
    "decoder_avx2.cpp": ["-mavx2", "-mfma"],
    "decoder_avx512.cpp": [*AVX512, *QUIET],
    "decoder_avx512bf16.cpp": [*AVX512, "-mavx512bf16", *QUIET],
}
# Flags that a compiler may be too old for (gcc 11, clang 12); the source then leaves its instruction set out.
OPTIONAL = {"avxvnni.cpp": ["-mavxvnni"]}
X86_64 = ("x86_64", "amd64")


class BuildKernels(build_ext):
    """A plain shared library, not a Python module: it is loaded by path, with ctypes."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def is_known(self, flag: str) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            empty = os.path.join(folder, "empty.cpp")
            open(empty, "w").close()
            try:
                self.compiler.compile([empty], output_dir=folder, extra_postargs=[flag])
            except CompileError:
                return False
        return True

    def build_extension(self, ext: Extension) -> None:
        def compile_one(source: str) -> list[str]:
            name = os.path.basename(source)
            flags = BASELINE + FLAGS[name] + [flag for flag in OPTIONAL.get(name, []) if self.is_known(flag)]
            return self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=flags)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [name for names in pool.map(compile_one, ext.sources) for name in names]
        target = self.get_ext_fullpath(ext.name)
        self.compiler.link_shared_object(objects, target, extra_postargs=["-pthread"], target_lang="c++")


# `optional`: without a compiler the install succeeds with a warning, and the cpu target runs on torch alone.
kernels = Extension(
    "qlinear._kernels",
    sources=[f"{CSRC}/{name}" for name in FLAGS],
    depends=[f"{CSRC}/{name}" for name in HEADERS],
    language="c++",
    optional=True,
)
setup(
    ext_modules=[kernels] if platform.machine().lower() in X86_64 else [],
    cmdclass={"build_ext": BuildKernels},
)
