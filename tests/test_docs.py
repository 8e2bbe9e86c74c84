"""The pages in docs/: the code they show runs, the files they name exist, the commands they give parse."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import run_program
from test_ext_format import small_graph, typed_graph

import subp_dist
import subp_ext
from subp_ext.dtypes import DTYPES, TypedArray

ROOT = Path(__file__).parent.parent


def python_of(page: str) -> list[str]:
    """The code that a page shows."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def reader() -> dict:
    """The functions of the reader at the end of the page."""
    (code,) = python_of("format.md")
    names: dict = {}
    exec(code, names)
    return names


@pytest.mark.parametrize("make", [small_graph, typed_graph])
def test_a_reader_written_from_the_page_reads_what_the_runtime_writes(make, tmp_path):
    graph, read = make(), reader()
    subp_ext.save(tmp_path / "m.subp", graph)
    described, constants = read["read"](tmp_path / "m.subp")
    assert described == graph.to_json() and list(constants) == list(graph.constants)
    for name, constant in graph.constants.items():
        found = constants[name]
        if not isinstance(constant, subp_ext.UniformBlockSparse):
            stored = constant.values if isinstance(constant, TypedArray) else constant
            assert np.array_equal(found["tensor"], stored)
            continue
        weight = DTYPES[constant.dtype].to_float(read["dense"](found))
        scale = found["scale"] if "scale" in found else np.ones(len(weight), np.float32)
        assert np.array_equal(weight * scale[:, None, None, None], constant.to_dense())


def test_a_reader_written_from_the_page_reads_version_1():
    described, constants = reader()["read"](ROOT / "tests" / "files" / "version1.subp")
    graph = subp_ext.load(ROOT / "tests" / "files" / "version1.subp")
    assert described == graph.to_json() and list(constants) == list(graph.constants)


def test_the_segmentation_network_is_trained_exported_and_served_from_one_map(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    *training, serving = python_of("segmentation.md")
    size, constants = 64, "SIZE, EPOCHS, STEPS, BATCH = 64, 4, 6, 8"
    assert constants in training[-1]
    training[-1] = training[-1].replace(constants, f"SIZE, EPOCHS, STEPS, BATCH = {size}, 2, 2, 4")
    names: dict = {}
    for code in training:
        exec(code, names)
    said = capsys.readouterr().out
    assert "input images: float32 [any, 3, any, any]" in said and "output scores: float32 [any, 3, any, any]" in said
    assert "in 1x16 blocks, 50" in said and "every image is computed alone" in said
    images, _ = names["shapes"](2, 56, seed=99)
    for number, image in enumerate(images):
        np.save(f"image{number}.npy", image.numpy())
    Path("serve.py").write_text(serving)
    # With multiprocessing.Pool in place of the executor it was once seen to hang, and never again in 1,860 runs.
    done = run_program([sys.executable, "serve.py", "unet.subp", "image0.npy", "image1.npy"], 120, attempts=2)
    assert done.returncode == 0, done.stderr
    scores = names["model"].eval()(images).detach().numpy()
    found = np.stack([np.load(f"image{number}.npy.classes.npy") for number in range(2)])
    assert found.shape == (2, 56, 56) and (found == scores.argmax(1)).mean() > 0.999

    with_death = serving.replace("    with open(path", "    import os; os.kill(os.getpid(), 9)\n    with open(path")
    assert with_death != serving
    Path("serve.py").write_text(with_death)
    done = run_program([sys.executable, "serve.py", "unet.subp", "image0.npy", "image1.npy"], 120)
    assert done.returncode == 1 and "BrokenProcessPool" in done.stderr


def test_the_api_page_lists_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text()
    listed = set(re.findall(r"`\.?(\w+)", page))
    assert set(subp_ext.__all__) | set(subp_dist.__all__) <= listed


README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_files_and_pages_that_are_named_exist(page):
    text = page.read_text()
    modules = set(re.findall(r"python -m (subp_\w+(?:\.\w+)*)", text))
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    named = set(re.findall(r"`((?:subp_dist|ext|tests|launch|docs)/[\w./-]+\.\w+)`", text))
    linked = {link for link in re.findall(r"\]\(([\w./-]+)(?:#[\w-]*)?\)", text) if "://" not in link}
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []
    assert [link for link in linked if not (page.parent / link).exists()] == []


class Parsed(Exception):
    """A command line was understood."""


def commands_of(page: Path) -> list[tuple[str, list[str]]]:
    """Modules of this project that a page runs, and their arguments."""
    text = page.read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [
        code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    ]
    found = []
    for line in lines:
        match = re.match(r"(?:[A-Z]+=\S+ )*(python -m subp_\S+|launch/train\.sh) (.*)", line)
        if match and "..." not in line:
            module = match[1].removeprefix("python -m ").replace("launch/train.sh", "subp_dist.train")
            found.append((module, shlex.split(re.sub(r"[][]", "", match[2]), comments=True)))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_parse(page, monkeypatch):
    parse = argparse.ArgumentParser.parse_known_args

    def parsing(self, args=None, namespace=None):
        raise Parsed(parse(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parsing)
    commands = commands_of(page)
    assert len(commands) > 20 or page != README
    for module, arguments in commands:
        if "--help" in arguments:
            continue
        is_package = importlib.util.find_spec(module).submodule_search_locations is not None
        found = importlib.import_module(f"{module}.__main__" if is_package else module)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(Parsed):
            getattr(found, "cli", getattr(found, "main", None))()


@pytest.mark.parametrize("package", ["subp_dist", "ext"])
def test_the_tree_of_the_readme_names_every_module(package):
    tree = README.read_text().rpartition("## For the next engineer")[2]
    modules = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py", "__main__.py"}
    assert modules - set(re.findall(r"[\w.]+", tree)) == set()
