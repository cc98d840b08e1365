"""What setup.cfg cannot say: the native library, one object per instruction set, each with its own flags."""

import glob
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = "qlinear/csrc"
# The kernels need -O3, but an explicit level wins: a sanitizer build at -O3 takes ten times as long.
OPTIMIZE = [] if "-O" in os.environ.get("CXXFLAGS", "") else ["-O3"]
# Python may have been built with -fwrapv, which keeps vectors on the stack that fit into registers.
BASELINE = ["-std=c++17", *OPTIMIZE, "-fno-wrapv", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
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
        "avx512amx.cpp": [*AVX512, "-mavx512vnni", *QUIET],
    },
}
# Flags that a compiler may be too old for (gcc 11, clang 12); the source then leaves its instruction set out.
IF_KNOWN = {"avxvnni.cpp": ["-mavxvnni"], "avx512amx.cpp": ["-mamx-tile", "-mamx-int8", "-mamx-bf16"]}
# The folder of this machine's processor. A processor without one gets no library: with scalar code alone the cpu target
# would be slower than with torch.
PROCESSOR = {"x86_64": "x86", "amd64": "x86"}.get(platform.machine().lower())
# The GPU's: machine code of what most have, and what the driver makes any newer one's of.
CUDA = "qlinear._kernels_cuda"
GENERATIONS = ("arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a", "arch=compute_90,code=compute_90")


class BuildKernels(build_ext):
    """Plain files, not Python modules: a shared library for ctypes, and a fatbin for the CUDA driver."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + (".fatbin" if fullname.endswith(CUDA.split(".")[-1]) else ".so")

    def build_cuda(self, ext: Extension) -> None:
        target = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        chosen = [f"-gencode={generation}" for generation in GENERATIONS]
        try:
            # nvcc before 12.8 does not know how to compress for size
            for flags in (["--compress-mode=size"], []):
                command = ["nvcc", "-std=c++17", "-O3", "-fatbin", *flags, *chosen, "-o", target, *ext.sources]
                if subprocess.run(command, capture_output=bool(flags)).returncode == 0:
                    return
        except OSError as error:
            raise CompileError(str(error)) from error
        raise CompileError("nvcc does not compile the cuda kernels; they are built at first use")

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
        if ext.name == CUDA:
            self.build_cuda(ext)
            return

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
    depends=[header for folder in ("common", PROCESSOR) for header in sorted(glob.glob(f"{CSRC}/{folder}/*.h"))],
    language="c++",
    optional=not REQUIRED,
)
# Without nvcc the kernels are built on a machine with a GPU at first use (qlinear/backends/cuda/binary.py).
cuda = Extension(
    CUDA, sources=[f"{CSRC}/cuda/kernels.cu"], depends=sorted(glob.glob(f"{CSRC}/cuda/*.h")), optional=True
)
setup(
    ext_modules=[kernels] * (PROCESSOR is not None) + [cuda] * (shutil.which("nvcc") is not None),
    cmdclass={"build_ext": BuildKernels},
)
