"""What setup.cfg cannot say: the native library, one object per instruction set, each with its own flags."""

import glob
import os
import platform
import tempfile
from concurrent.futures import ThreadPoolExecutor

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = "qlinear/csrc"
# The kernels need -O3, but an explicit level wins: a sanitizer build at -O3 takes ten times as long.
OPTIMIZE = [] if "-O" in os.environ.get("CXXFLAGS", "") else ["-O3"]
BASELINE = ["-std=c++17", *OPTIMIZE, "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
# gcc's own AVX-512 headers trip its uninitialized-variable warnings.
QUIET = ["-Wno-uninitialized"] + ["-Wno-maybe-uninitialized"] * ("clang" not in os.environ.get("CXX", ""))
AVX2 = ["-mavx2", "-mfma"]
# Every source file with the flags it needs besides: a folder for any processor, and one for each kind.
SOURCES = {
    "common": {
        "decoder.cpp": [],
        "decoder_cache.cpp": [],
        "decoder_experts.cpp": [],
        "decoder_step.cpp": [],
        "linear.cpp": [],
        "ops.cpp": [],
        "pack.cpp": [],
        "scalar.cpp": [],
        "threads.cpp": [],
    },
    "x86": {
        "processor.cpp": [],
        "avx2.cpp": AVX2,
        "avxvnni.cpp": AVX2,
        "avx512.cpp": [*AVX512, *QUIET],
        "avx512vnni.cpp": [*AVX512, "-mavx512vnni", *QUIET],
        "avx512bf16.cpp": [*AVX512, "-mavx512bf16", *QUIET],
    },
}
# Flags that a compiler may be too old for (gcc 11, clang 12); the source then leaves its instruction set out.
IF_KNOWN = {"avxvnni.cpp": ["-mavxvnni"]}
# The folder of this machine's processor. A processor without one gets no library: with scalar code alone the cpu target
# would be slower than with torch.
PROCESSOR = {"x86_64": "x86", "amd64": "x86"}.get(platform.machine().lower())


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
            folder, name = source.split("/")[-2:]
            flags = BASELINE + SOURCES[folder][name] + [flag for flag in IF_KNOWN.get(name, []) if self.is_known(flag)]
            return self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=flags)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [name for names in pool.map(compile_one, ext.sources) for name in names]
        target = self.get_ext_fullpath(ext.name)
        self.compiler.link_shared_object(objects, target, extra_postargs=["-pthread"], target_lang="c++")


# Without a compiler the install succeeds with a warning, and the cpu target runs on torch alone. Where the kernels are
# what is tested, RUN_AWQ_KERNELS=required makes that an error.
REQUIRED = os.environ.get("RUN_AWQ_KERNELS") == "required"
if REQUIRED and PROCESSOR is None:
    raise SystemExit(f"RUN_AWQ_KERNELS=required, but there are no kernels for {platform.machine()} processors")
kernels = Extension(
    "qlinear._kernels",
    sources=[f"{CSRC}/{folder}/{name}" for folder in ("common", PROCESSOR) for name in SOURCES.get(folder, ())],
    depends=sorted(glob.glob(f"{CSRC}/*/*.h")),
    language="c++",
    optional=not REQUIRED,
)
setup(ext_modules=[kernels] if PROCESSOR else [], cmdclass={"build_ext": BuildKernels})
