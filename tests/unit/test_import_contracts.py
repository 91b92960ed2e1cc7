"""The import contracts of `pyproject.toml` reject what they are meant to reject.

`make lint` runs `lint-imports`, which reads the imports of the source into a graph and checks each contract
against it. These tests check the same contracts against the same graph, with one import added to it at a
time. The last test adds imports to a copy of the source and runs `lint-imports` itself: it says the same.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import grimp
import pytest
from importlinter.api import read_configuration
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.layers import LayersContract

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = read_configuration(str(ROOT / "pyproject.toml"))
CONTRACTS: list[dict[str, Any]] = CONFIGURATION["contracts_options"]
KINDS = {"layers": LayersContract, "forbidden": ForbiddenContract}


def options(name: str) -> dict[str, Any]:
    return next(each for each in CONTRACTS if each["name"].startswith(name))


def modules_of(listed: str) -> list[str]:
    """Return the modules of a package, or the module itself."""
    path = ROOT / "src" / listed.replace(".", "/")
    inside = [each.relative_to(ROOT / "src").with_suffix("") for each in path.rglob("*.py")]
    return [".".join(each.parts).removesuffix(".__init__") for each in inside] or [listed]


LAYERS = [
    [module.strip() for module in re.split(r"\|", layer)] for layer in options("Imports point down")["layers"]
]
PURE = options("Pure modules")["source_modules"]
# A package that is listed stands for each of its modules.
PURE_MODULES = sorted({module for listed in PURE for module in modules_of(listed)})
IMPURE = options("Pure modules")["forbidden_modules"]
# Each module of a layer with one of the layer above, and with another of its own layer.
UPWARD = [
    (module, other)
    for above, layer in zip([[], *LAYERS], LAYERS, strict=False)
    for place, module in enumerate(layer)
    for other in dict.fromkeys([*above[:1], layer[place - 1]])
    if other != module
]
# What is not part of the server.
APART = ("bench", "cli", "client", "cluster", "doctor", "simulator", "testing")


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    found = grimp.build_graph("jetstream", include_external_packages=True, cache_dir=None)
    for module in IMPURE:
        if module not in found.modules:
            found.add_module(module, is_squashed=True)
    return found


def kept(graph: grimp.ImportGraph, name: str) -> bool:
    """Tell whether a contract is kept."""
    contract = KINDS[options(name)["type"]](name, CONFIGURATION["session_options"], options(name))
    return contract.check(graph, verbose=False).kept


def leaf(graph: grimp.ImportGraph, module: str) -> str:
    """Return a module of a package, or the module itself. A library has no modules here."""
    if graph.is_module_squashed(module):
        return module
    inside = sorted(each for each in graph.find_descendants(module) if not graph.find_children(each))
    return inside[-1] if inside else module


@pytest.fixture(scope="module")
def unbroken(graph: grimp.ImportGraph) -> set[str]:
    """Return the contracts that the source keeps as it is."""
    return {name for each in CONTRACTS if kept(graph, name := each["name"])}


@pytest.fixture
def rejected(graph: grimp.ImportGraph, unbroken: set[str]) -> Iterator[Any]:
    """Tell whether a contract is kept without an import, and broken with it."""
    added: list[tuple[str, str]] = []

    def check(contract: str, importer: str, imported: str) -> bool:
        assert options(contract)["name"] in unbroken
        assert not graph.direct_import_exists(importer=importer, imported=imported)
        graph.add_import(importer=importer, imported=imported)
        added.append((importer, imported))
        return not kept(graph, contract)

    yield check
    for importer, imported in added:
        graph.remove_import(importer=importer, imported=imported)


def test_every_top_level_module_is_in_a_layer(graph: grimp.ImportGraph) -> None:
    found = {module.removeprefix("jetstream.") for module in graph.find_children("jetstream")}
    assert found == {module for layer in LAYERS for module in layer}
    assert {module for module, _ in UPWARD} == found - {"__main__"}


@pytest.mark.parametrize(("module", "other"), UPWARD)
def test_an_import_of_a_layer_above_or_of_a_sibling_is_rejected(
    module: str, other: str, graph: grimp.ImportGraph, rejected: Any
) -> None:
    importer, imported = (leaf(graph, f"jetstream.{each}") for each in (module, other))
    assert rejected("Imports point down", importer, imported)


def test_a_new_top_level_module_without_a_layer_is_rejected(graph: grimp.ImportGraph) -> None:
    graph.add_module("jetstream.new")
    assert not kept(graph, "Imports point down")
    graph.remove_module("jetstream.new")


def test_no_modules_import_each_other_in_a_circle(graph: grimp.ImportGraph) -> None:
    """Not even for their types. Raises CycleError, which has the circle."""
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()


@pytest.mark.parametrize("reader", ["delivery", "web"])
@pytest.mark.parametrize("writer", ["ingest", "upstream"])
def test_an_import_across_the_log_is_rejected(
    reader: str, writer: str, graph: grimp.ImportGraph, rejected: Any
) -> None:
    importer, imported = (leaf(graph, f"jetstream.{each}") for each in (reader, writer))
    assert rejected("Nothing but the log", importer, imported)


@pytest.mark.parametrize(
    ("module", "impure"),
    [
        *((module, "asyncio") for module in PURE_MODULES),
        *(("jetstream.model.event", impure) for impure in IMPURE[2:]),
    ],
)
def test_an_impure_import_in_a_pure_module_is_rejected(module: str, impure: str, rejected: Any) -> None:
    assert rejected("Pure modules", module, impure)


@pytest.mark.parametrize("imported", options("The client imports nothing")["forbidden_modules"])
def test_an_import_of_the_server_in_the_client_is_rejected(
    imported: str, graph: grimp.ImportGraph, rejected: Any
) -> None:
    assert rejected("The client imports nothing", "jetstream.client.route", leaf(graph, imported))


def test_every_module_of_the_server_that_is_pure_is_listed_as_such(graph: grimp.ImportGraph) -> None:
    impure = [module for module in IMPURE if graph.find_modules_that_directly_import(module)]
    pure = {
        module
        for module in graph.find_descendants("jetstream")
        if not graph.find_children(module)  # a package has no code of its own here
        and module.split(".")[1] not in APART
        and not any(graph.chain_exists(importer=module, imported=each) for each in impure)
    }
    assert {
        module for module in pure if not any(f"{module}.".startswith(f"{each}.") for each in PURE)
    } == set()


def test_the_linter_rejects_such_an_import_in_the_source(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src"), "COLUMNS": "200"}

    def run() -> tuple[int, str]:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout

    assert run()[0] == 0
    with (tmp_path / "src/jetstream/model/event.py").open("a") as source:
        source.write("\nimport asyncio\nfrom jetstream.web import subscribe\n")
    code, text = run()
    assert code == 1
    assert "jetstream.model.event -> asyncio" in text
    assert "jetstream.model.event -> jetstream.web.subscribe" in text
