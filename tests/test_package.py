"""Laws of the wheel: it holds the package, and runs from where it was installed."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command):
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_module_the_licence_and_the_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert "leapformer/ops/leap_attention.py" in modules
    assert modules <= names
    assert "leapformer/py.typed" in names
    assert "leapformer/ops/native.cpp" in names
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    others = {name for name in names if not name.startswith(("leapformer/", "leapformer-"))}
    assert others == set()


def test_the_installed_wheel_runs_from_its_own_folder(wheel, tmp_path):
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    run("-m", "pip", "install", *options, str(wheel))
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import torch, leapformer
from importlib.metadata import version
q, k, v = torch.rand(3, 1, 4, 2)
y = leapformer.leap_attention(q[None], k[None], torch.ones(1, 1, 4, 3), visible="causal")
torch.testing.assert_close(y, torch.ones(1, 1, 4, 3))
assert version("leapformer") == leapformer.__version__
print(leapformer.__file__)
"""
    file = Path(run("-I", "-c", code).strip())
    assert file == tmp_path / "leapformer" / "__init__.py"


def test_it_serves_without_compiler_triton_and_gpu_and_says_so_where_one_is_named(wheel, tmp_path):
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    run("-m", "pip", "install", *options, str(wheel))
    code = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch
from leapformer import LeaP, leap_attention
from leapformer.ops import choose_backend
torch.manual_seed(0)
inputs = [x.requires_grad_() for x in torch.randn(3, 1, 2, 70, 8)]
leaps = LeaP(8), LeaP(8)

def results(backend):
    y = leap_attention(*inputs, *leaps, visible="causal", backend=backend)
    return [y, *torch.autograd.grad(y.square().sum(), inputs)]

assert choose_backend("auto", torch.device("cpu")) == "chunked"
for ours, right in zip(results("auto"), results("reference"), strict=True):
    torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-4)
for backend in ("native", "triton"):
    try:
        results(backend)
    except (RuntimeError, ValueError) as error:
        print(error)
"""
    bare = {"PYTHONPATH": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    bare |= {"XDG_CACHE_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=bare)
    assert done.returncode == 0, done.stderr
    native, triton = done.stdout.splitlines()
    assert "needs a C++ compiler, and c++ is not found" in native
    assert "needs Triton, which is not installed" in triton
    assert all('backend="chunked"' in line for line in (native, triton))
