"""The compiled kernels: built by nvcc when the package was installed, else by NVRTC at first use and kept."""

import ctypes
import hashlib
import sys
from pathlib import Path

from qlinear.cache import cache_directory
from qlinear.errors import TargetError
from qlinear.files import write_whole

FATBIN = Path(__file__).parents[2] / "_kernels_cuda.fatbin"
SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"
ENTRY = "kernels.cu"


def kernel_image(major: int, minor: int) -> bytes:
    """What the driver loads on a GPU of compute capability major.minor.

    Raises `TargetError` where it is neither built nor can be.
    """
    if major < 8:
        raise TargetError(f"the cuda kernels need compute capability 8.0; this GPU has {major}.{minor}")
    if FATBIN.exists():
        return FATBIN.read_bytes()
    runtime = Nvrtc()
    sources = {path.name: path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.suffix in (".h", ".cu")}
    # "a": the instructions of that architecture alone, sm_90a say, which nothing older than Hopper has
    architecture = f"sm_{major}{minor}{'a' if major >= 9 else ''}"
    kept = _cache() / f"kernels-{_key(sources, architecture, runtime.version)}.cubin"
    if kept.exists():
        return kept.read_bytes()
    image = runtime.compile(sources, architecture)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, lambda file: file.write(image))
    except OSError:
        pass  # it is built again the next time
    return image


def _cache() -> Path:
    return cache_directory() or Path("/nonexistent")


def _key(sources: dict[str, bytes], architecture: str, version: str) -> str:
    digest = hashlib.sha256(f"{architecture} {version}".encode())
    for name, text in sources.items():
        digest.update(name.encode() + text)
    return f"{architecture}-{digest.hexdigest()[:16]}"


class Nvrtc:
    """NVIDIA's run-time compiler, which torch for CUDA brings along. Raises `TargetError` where it is not found."""

    def __init__(self) -> None:
        self._library = _find_library()
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def compile(self, sources: dict[str, bytes], architecture: str) -> bytes:
        """A cubin of `ENTRY`; the other sources are the headers it includes."""
        headers = {name: text for name, text in sources.items() if name != ENTRY}
        program = ctypes.c_void_p()
        texts = (ctypes.c_char_p * len(headers))(*headers.values())
        names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
        options = [b"-std=c++17", f"-arch={architecture}".encode()]
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), sources[ENTRY], ENTRY.encode(), len(headers), texts, names
        )
        try:
            given = (ctypes.c_char_p * len(options))(*options)
            if self._library.nvrtcCompileProgram(program, len(options), given):
                raise TargetError(f"NVRTC {self.version} does not compile the cuda kernels: {self._log(program)}")
            size = ctypes.c_size_t()
            self._call("nvrtcGetCUBINSize", program, ctypes.byref(size))
            image = ctypes.create_string_buffer(size.value)
            self._call("nvrtcGetCUBIN", program, image)
            return image.raw
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _log(self, program: ctypes.c_void_p) -> str:
        """The first line of what the compiler says."""
        size = ctypes.c_size_t()
        self._library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._library.nvrtcGetProgramLog(program, text)
        return next(iter(text.value.decode().splitlines()), "it does not say why")

    def _call(self, name: str, *arguments: object) -> None:
        error = getattr(self._library, name)(*arguments)
        if error:
            raise TargetError(f"NVRTC {self.version}: {name} failed with error {error}")


def _find_library() -> ctypes.CDLL:
    """Torch's own first: it lies beside it, in a package of NVIDIA's."""
    beside = [path for folder in sys.path for path in Path(folder or ".").glob("nvidia/*/lib/libnvrtc.so.*")]
    installed = sorted(path for path in beside if "builtins" not in path.name and ".alt" not in path.name)
    for name in [*map(str, reversed(installed)), "libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise TargetError("the cuda kernels are not built, and NVRTC, which could build them now, is not found")
