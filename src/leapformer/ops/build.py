"""The native kernel's library: found in the user's cache, or made there by the user's compiler.

One folder for each source, torch and processor; in it one file for each compiler, named by a digest
of its contents. A file appears whole, by a rename, so that processes which build at once do not
disturb each other, and one that was damaged later is known by its name and made again.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch._appdirs import user_cache_dir

SOURCE = Path(__file__).with_name("native.cpp")
_NATIVE = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
_FLAGS = ("-O3", _NATIVE, "-std=c++20", "-fPIC", "-shared", "-fno-math-errno")
_FLAGS += ("-fno-trapping-math", *(("-fopenmp",) if sys.platform == "linux" else ()))
INSTEAD = 'backend="chunked" serves without a compiler'


def folder(cache: Path | None = None) -> Path:
    """Where libraries of this source, torch and processor lie, in the user's cache folder."""
    what = [SOURCE.read_bytes(), torch.__version__.encode(), " ".join(_FLAGS).encode()]
    key = _digest(b"\0".join([*what, _processor().encode()]))
    return (cache or Path(user_cache_dir("leapformer"))) / "native" / key


def find(cache: Path | None = None, compiler: str = "") -> Path | None:
    """The whole library last asked for, of that compiler (as `build` writes it) if one is named."""
    found = [(*_read(path), path) for path in folder(cache).glob(f"{compiler or '*'}-*.so")]
    whole = [(age, path) for age, data, path in found if _whole(path, data)]
    return max(whole)[1] if whole else None


def compiler() -> str | None:
    """The path of the user's C++ compiler: CXX, or c++."""
    from torch.utils.cpp_extension import get_cxx_compiler

    return shutil.which(get_cxx_compiler())


def build(cache: Path | None = None) -> Path:
    """The library of the present compiler, compiled where it is not there yet.

    Says on stderr what it does. Raises RuntimeError where that fails, with the compiler's last
    lines and what serves instead.
    """
    try:
        from torch.utils.cpp_extension import get_cxx_compiler, include_paths, library_paths
    except ImportError as error:
        raise RuntimeError(f"the native kernel cannot be built: {error}; {INSTEAD}") from error
    path = compiler()
    if path is None:
        raise RuntimeError(
            f"the native kernel needs a C++ compiler, and {get_cxx_compiler()} is not found: "
            f"install one, such as g++, or name it in CXX; {INSTEAD}"
        )
    try:
        version = subprocess.run([path, "--version"], capture_output=True).stdout
        label = f"{Path(path).name}-{_digest(version)}"
        found, place = find(cache, label), folder(cache)
        if found is not None:
            found.touch()
            return found
        print(f"leapformer: building the native kernel with {path}, once", file=sys.stderr)
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            made = Path(scratch) / "kernel.so"
            command = [path, *_FLAGS, str(SOURCE), "-o", str(made)]
            command += [f"-I{each}" for each in include_paths()]
            command += [f"-L{each}" for each in library_paths()] + ["-ltorch_cpu", "-lc10"]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if done.returncode or not made.is_file():
                last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
                raise RuntimeError(
                    f"the native kernel cannot be built: {path} gave {done.returncode}; "
                    f"{INSTEAD}. Its last lines:\n{last}"
                )
            for other in place.glob("*.so"):
                if not _whole(other, _read(other)[1]):
                    other.unlink(missing_ok=True)
            return made.replace(place / f"{label}-{_digest(made.read_bytes())}.so")
    except OSError as error:
        raise RuntimeError(f"the native kernel cannot be built: {error}; {INSTEAD}") from error


def _read(path: Path) -> tuple[float, bytes]:
    """When a file was written, and its contents; none where another process just removed it."""
    try:
        return path.stat().st_mtime, path.read_bytes()
    except FileNotFoundError:
        return 0.0, b""


def _whole(path: Path, data: bytes) -> bool:
    return _digest(data) == path.stem.rpartition("-")[2]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except FileNotFoundError:  # not Linux
        return f"{platform.machine()} {platform.processor()}"
    told = {line.partition(":")[0].strip(): line for line in lines}
    return "\n".join(told.get(name, "") for name in ("model name", "flags", "Features"))
