"""What all tests share: one thread a worker, repeatable cases, and where the real data may be."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from leapformer.ops import build, native

settings.register_profile(
    "laws",
    deadline=None,
    derandomize=True,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("laws")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels run on the CPU
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of children: a thread in want of a core spins for minutes

ROOT = Path(__file__).parent.parent


def pytest_sessionstart() -> None:
    """Build the native kernel before any test, so that what `auto` chooses stays the same."""
    if build.compiler() is not None:
        native.kernel()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a real device are skipped where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the repository; tests that read it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data sets in ../shared/data, which are not here")
    return folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
