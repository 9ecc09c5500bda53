"""Laws of the house: which way imports run, what an import loads, what no file may hold."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import leapformer

ROOT = Path(__file__).parents[1]
PACKAGE = Path(leapformer.__file__).parent

# room -> the rooms that it may import, besides itself
OPS = {"ops", "proportion"}
ZOO = OPS | {"zoo"}
LAYERS = ZOO | {"layers", "progress"}
MODELS = LAYERS | {"models"}
HELPERS = {"results", "timing", "plots"}
MAY_IMPORT = {
    "ops": set(),
    "proportion": set(),
    "progress": set(),
    "results": {"ops"},
    "timing": set(),
    "plots": set(),
    "zoo": OPS,
    "layers": ZOO,
    "models": LAYERS,
    "bench": MODELS | HELPERS | {"tasks"},
    "tasks": MODELS | HELPERS,
    "cli": MODELS | HELPERS | {"bench", "tasks"},
    "__main__": {"cli"},
    "__init__": MODELS,
}
ONLY_TORCH = {"ops", "proportion", "progress"}
KERNELS = re.compile(r"ops/triton_(kernels|launch|step)\.py")
"""These may import Triton besides: nothing loads them before they are used."""


def imports(source, package):
    """Full names of all modules that a file of that package imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            module = importlib.util.resolve_name(name, package) if node.level else name
            if module == "leapformer":  # from .. import plots
                yield from (f"leapformer.{alias.name}" for alias in node.names)
            else:
                yield module


def violations(file, source):
    """What the file at this path (relative to the package) imports and may not."""
    room = Path(file).parts[0].removesuffix(".py")
    package = ".".join(["leapformer", *Path(file).parts[:-1]])
    allowed = MAY_IMPORT.get(room, set()) | {room}
    found = []
    for module in imports(source, package):
        top, *inside = module.split(".")
        if top == "leapformer":
            wrong = (inside or ["__init__"])[0] not in allowed
        elif room in ONLY_TORCH:
            wrong = top != "torch" and top not in sys.stdlib_module_names
            wrong = wrong and not (top == "triton" and KERNELS.fullmatch(file))
        else:
            wrong = room == "plots" and top == "torch"
        if wrong:
            found.append(f"{file} imports {module}")
    return found


MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def test_every_room_has_its_rule():
    rooms = {Path(file).parts[0].removesuffix(".py") for file in MODULES}
    assert rooms <= MAY_IMPORT.keys()


@pytest.mark.parametrize("file", MODULES)
def test_imports_run_one_way(file):
    assert violations(file, (PACKAGE / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("ops/chunked.py", "from ..zoo import ATTENTIONS"),
        ("ops/chunked.py", "from .. import proportion"),
        ("ops/chunked.py", "import numpy as np"),
        ("ops/triton_backend.py", "import triton"),
        ("ops/triton_kernels.py", "import numpy as np"),
        ("ops/chunked.py", "def f():\n    import leapformer.models.base"),
        ("ops/chunked.py", "from leapformer import LeaP"),
        ("proportion.py", "from .ops import leap_attention"),
        ("zoo/leap.py", "try:\n    from ..layers.block import TransformerBlock\nfinally: pass"),
        ("layers/block.py", "from ..models import LeaPformerModel"),
        ("models/base.py", "from ..tasks.lra import train"),
        ("models/base.py", "from .. import results"),
        ("tasks/lra/train.py", "from ... import cli"),
        ("bench/attention.py", "from ..cli import main"),
        ("results.py", "from . import timing"),
        ("plots/arena.py", "import torch.nn"),
        ("plots/arena.py", "from ..ops import Visible"),
        ("unheard_of.py", "from .ops import Visible"),
    ],
)
def test_the_reader_of_imports_finds_an_upward_one(file, source):
    assert len(violations(file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("ops/chunked.py", "import math, torch\nfrom .features import widen\nfrom . import state"),
        ("ops/triton_kernels.py", "import triton.language as tl"),
        ("zoo/leap.py", "from ..proportion import LeaP\nfrom ..ops.checks import known"),
        ("tasks/lra/train.py", "from ...models import LeaPformerModel\nfrom .. import lra"),
        ("plots/arena.py", "import matplotlib"),
    ],
)
def test_the_reader_of_imports_passes_a_downward_one(file, source):
    assert violations(file, source) == []


HEAVY = ("triton", "transformers", "datasets", "accelerate", "matplotlib", "tyro", "simuleval")
HEAVY += (
    "torch.utils.cpp_extension",
    "setuptools",
    "kaldi_native_fbank",
    "sentencepiece",
    "soundfile",
    "soxr",
)


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def loaded_by(code):
    """Which of the heavy modules this code loads, beyond those that torch alone loads."""
    report = f"; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    runs = [run_python("import json, sys, torch; " + each + report) for each in ("pass", code)]
    assert [run.returncode for run in runs] == [0, 0], runs[-1].stderr
    torch_alone, found = (set(json.loads(run.stdout.splitlines()[-1])) for run in runs)
    return found - torch_alone


def test_import_leapformer_loads_nothing_heavy():
    assert loaded_by("import leapformer") == set()


def test_the_zoo_and_the_layers_load_nothing_heavy():
    assert loaded_by("import leapformer.layers; leapformer.ATTENTIONS") == set()


def test_the_models_load_transformers_and_no_filterbank():
    found = loaded_by("import leapformer.models")
    assert "transformers" in found
    assert "kaldi_native_fbank" not in found


def test_the_probe_for_heavy_modules_finds_transformers_where_it_is_loaded():
    assert "transformers" in loaded_by("import leapformer; leapformer.LeaPformerModel")


@pytest.mark.parametrize("name", leapformer.__all__)
def test_public_names_resolve(name):
    assert getattr(leapformer, name) is not None
    assert name in dir(leapformer)


def test_star_import_gives_the_public_names():
    names = {}
    exec("from leapformer import *", names)
    assert names.keys() - {"__builtins__"} == set(leapformer.__all__)


def test_an_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'transformer'"):
        _ = leapformer.transformer
    assert not hasattr(leapformer, "LeaPformer")


@pytest.mark.parametrize(
    ("missing", "module", "extra"),
    [
        ("transformers", "leapformer.models", "leapformer[models]"),
        ("tyro", "leapformer.cli", "leapformer[lra]"),
        ("soundfile", "leapformer.tasks.speech.audio", "leapformer[speech]"),
        ("sentencepiece", "leapformer.tasks.speech.tokens", "leapformer[speech]"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(missing, module, extra):
    run = run_python(f"import sys; sys.modules[{missing!r}] = None; import {module}")
    assert run.returncode != 0
    assert extra in run.stderr
    assert missing in run.stderr
    assert run_python(f"import {module}").returncode == 0


def tracked(folder="."):
    """The tracked files that are there."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.check_output(["git", "ls-files", "-z", folder], cwd=ROOT, text=True)
    return [ROOT / name for name in names.split("\0") if (ROOT / name).is_file()]


def machine_paths(text):
    return re.findall(r"(?<![\w.~})-])/(?:work|root|home)(?:/\S*|\b)", text)


def test_no_file_names_a_folder_of_one_machine():
    files = tracked()
    assert ROOT / "pyproject.toml" in files
    texts = {path: path.read_text(encoding="utf-8", errors="ignore") for path in files}
    assert {
        str(path): found for path, text in texts.items() if (found := machine_paths(text))
    } == {}


def test_the_reader_of_paths_finds_one():
    for folder in ("work", "root", "home"):
        assert machine_paths(f'out = "/{folder}/results"')
        assert machine_paths(f"cd /{folder}")
        assert machine_paths(f"file:///{folder}/results")
    assert not machine_paths("https://example.org/home/page, ~/work/out, docs/home/index, /homes")


UNSAFE = re.compile(
    r"pickle\.loads?\b|import .*\bpickle\b|allow_pickle=True|torch\.load\((?!.*weights_only=True)"
    r"|os\.(environ|getenv)|from os import .*(environ|getenv)"
)


def unsafe(source):
    """Loads that can run code, and settings read from the environment."""
    code = ast.unparse(ast.parse(source))  # one line per statement
    return [line for line in code.splitlines() if UNSAFE.search(line)]


def test_no_module_runs_code_from_data_or_reads_the_environment():
    files = [path for path in tracked("src") if path.suffix == ".py"]
    assert files
    sources = {str(path): path.read_text(encoding="utf-8") for path in files}
    assert {path: found for path, text in sources.items() if (found := unsafe(text))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "x = pickle.load(file)",
        "np.load(path, allow_pickle = True)",
        "torch.load(\n    Path(path),\n    map_location='cpu',\n)",
        "torch.load(path, weights_only=False)",
        "os.environ['DEBUG'] = '1'",
        "from os import environ",
    ],
)
def test_the_reader_of_unsafe_code_finds_it(line):
    assert unsafe(line)


def test_the_reader_of_unsafe_code_passes_the_safe_form():
    assert not unsafe("torch.load(\n    Path(path),\n    weights_only=True)\nnp.load(path)")
