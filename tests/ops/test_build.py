"""Making and finding the kernel's library: what fails says why, what is broken is made again."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cases import native

from leapformer import leap_attention
from leapformer.cli import main
from leapformer.ops import build as building
from leapformer.ops import choose_backend
from leapformer.ops import native as fused

pytestmark = pytest.mark.skipif(os.name != "posix", reason="compilers here are shell scripts")
WORKS = """
while [ "$1" != "-o" ]; do
    [ "$1" = "--version" ] && echo one && exit
    shift
done
sleep 0.2
echo run >> {log}
cp {library} "$2"
"""
FAILS = """
echo "native.cpp:1:1: error: this compiler takes no C++" >&2
exit 3
"""
IDLE = "exit 0"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Makes CXX a shell script with this text."""

    def make(text: str) -> Path:
        path = tmp_path / "c++"
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))
        return path

    return make


@pytest.fixture
def working(compiler, tmp_path):
    """A compiler that hands out a file for a library, and where it counts its runs."""
    library, log = tmp_path / "made.so", tmp_path / "log"
    library.write_bytes(b"a library" * 1000)
    log.write_text("")
    compiler(WORKS.format(log=log, library=library))
    return log


@pytest.fixture
def unbuilt(monkeypatch, tmp_path):
    """A process and a user whose kernel was never built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fused._found.cache_clear()
    yield tmp_path / "cache" / "leapformer"
    monkeypatch.undo()
    fused._found.cache_clear()


def attend(backend="native"):
    return leap_attention(*torch.rand(3, 1, 1, 4, 2), backend=backend)


def test_what_was_built_is_found_and_not_built_again(working, tmp_path, capsys):
    assert building.find(tmp_path) is None
    made = building.build(tmp_path)
    assert "building the native kernel with" in capsys.readouterr().err
    assert building.find(tmp_path) == building.build(tmp_path) == made
    assert capsys.readouterr().err == ""
    assert working.read_text() == "run\n"
    assert [path for path in made.parent.iterdir() if path != made] == []


def test_the_compiler_last_asked_wins(working, compiler, tmp_path):
    made = {}
    for text in (b"one", b"two", b"one"):
        (tmp_path / "made.so").write_bytes(text)
        script = WORKS.replace("echo one", f"echo {text.decode()}")
        compiler(script.format(log=working, library=tmp_path / "made.so"))
        made[text] = building.build(tmp_path)
        assert building.find(tmp_path) == made[text]
    assert len(set(made.values())) == 2
    assert working.read_text() == "run\n" * 2


@pytest.mark.parametrize("damage", [lambda x: x[:100], lambda x: b"", lambda x: x[:-1] + b"?"])
def test_a_broken_library_is_made_again(working, tmp_path, damage):
    made = building.build(tmp_path)
    whole = made.read_bytes()
    made.write_bytes(damage(whole))
    assert building.find(tmp_path) is None
    assert building.build(tmp_path).read_bytes() == whole


@pytest.mark.usefixtures("working")
def test_many_that_build_at_once_do_not_disturb_each_other(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(building.build, [tmp_path] * 4))
    assert paths == {building.find(tmp_path)}


def test_another_source_torch_or_processor_has_another_folder(monkeypatch, tmp_path):
    other = tmp_path / "other.cpp"
    other.write_text("int main() {}")
    folders = {building.folder(tmp_path)}
    for owner, name, value in (
        (building, "SOURCE", other),
        (torch, "__version__", "9.9"),
        (building, "_processor", lambda: "another"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            folders.add(building.folder(tmp_path))
    assert len(folders) == 4


@pytest.mark.usefixtures("unbuilt")
def test_without_a_compiler_it_says_so_and_what_serves(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"C\+\+ compiler, and c\+\+ is not found.*chunked"):
        attend()
    assert choose_backend("auto", torch.device("cpu")) == "chunked"
    assert attend("auto").shape == (1, 1, 4, 2)


@pytest.mark.usefixtures("unbuilt")
@pytest.mark.parametrize(
    ("script", "said"),
    [(FAILS, "gave 3; .*chunked.*\n.*takes no C"), (IDLE, "gave 0; .*chunked")],
)
def test_a_compiler_that_fails_is_quoted(compiler, script, said):
    compiler(script)
    with pytest.raises(RuntimeError, match=said):
        attend()


@pytest.mark.usefixtures("unbuilt", "working")
def test_a_library_that_does_not_load_says_why_and_auto_does_without():
    with pytest.raises(RuntimeError, match=r"cannot be loaded: .*chunked"):
        attend()
    fused._found.cache_clear()
    assert attend("auto").shape == (1, 1, 4, 2)


def test_auto_never_compiles(unbuilt, working):
    assert attend("auto").shape == (1, 1, 4, 2)
    assert working.read_text() == ""
    assert not unbuilt.exists()


@pytest.mark.usefixtures("working")
def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(RuntimeError, match=r"cannot be built: .*file.*chunked"):
        building.build(in_the_way)


@native
def test_the_command_builds_it_and_says_where_it_lies(capsys):
    assert main(["build"]) == 0
    out = capsys.readouterr().out
    assert str(building.find()) in out
    assert "auto" in out


@pytest.mark.usefixtures("unbuilt")
def test_the_command_fails_in_one_line(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert main(["build"]) == 2
    assert "needs a C++ compiler" in capsys.readouterr().err


@pytest.fixture
def real():
    """The library that the other tests use."""
    fused.kernel()
    return building.find()


@native
def test_a_truncated_library_is_built_again_by_the_first_use(real, unbuilt, compiler, tmp_path):
    compiler(WORKS.format(log=tmp_path / "log", library=real))
    place = building.folder(unbuilt)
    place.mkdir(parents=True)
    broken = place / real.name
    broken.write_bytes(real.read_bytes()[:5000])
    assert choose_backend("auto", torch.device("cpu")) == "chunked"
    assert attend().isfinite().all()
    assert building.find().read_bytes() == real.read_bytes()
    assert choose_backend("auto", torch.device("cpu")) == "native"
