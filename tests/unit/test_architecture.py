"""The house's laws that no other tool checks: sizes, docstrings, words, and what must never be written down."""

import ast
import configparser
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 500
MOST_FUNCTION_LINES = 60

# Files whose name says that they decide: they belong to the pure contract.
PURE_NAMES = {
    "access", "accept", "envelope", "evacuate", "fetch", "lifecycle", "manifest", "membership", "model", "place",
    "pool", "rebalance", "reconcile", "redundancy", "refresh", "quota", "domainxml", "canary", "protect", "matching",
    "collect", "copies", "growth",
}  # fmt: skip

# One word, one thing (docs/vocabulary.md): class names that would name a thing a second time.
FOREIGN_WORDS = ("Node", "Host", "Cluster", "Master", "Instance", "Flavor", "Hypervisors", "Tenant")


# What is made here and never judged: the folders that .gitignore names, and git's own.
MADE_HERE = {
    ".git",
    ".pytest_cache",
    *(line.strip("/").split("/")[-1] for line in (ROOT / ".gitignore").read_text().split()),
}


def written(*suffixes: str) -> list[Path]:
    """Return the files that people wrote, so that nothing generated is judged.

    Looked up in the folder itself: a checkout need not be a git repository, nor belong to whoever runs the tests.
    """
    files = []
    for folder, inner, names in os.walk(ROOT):
        inner[:] = sorted(name for name in inner if name not in MADE_HERE and not name.endswith(".egg-info"))
        files += [Path(folder, name) for name in sorted(names) if not suffixes or name.endswith(suffixes)]
    return files


def sources() -> list[Path]:
    return [file for file in written(".py") if file.is_relative_to(ROOT / "kmgr")]


def definitions(file: Path) -> Iterator[ast.AST]:
    yield from ast.walk(ast.parse(file.read_text()))


def test_no_file_is_longer_than_the_gate() -> None:
    long = {
        str(file.relative_to(ROOT)): count
        for file in written(".py", ".js", ".sh", ".css", ".html", ".jinja")
        if (count := len(file.read_text().splitlines())) > MOST_LINES
    }
    assert not long


def test_no_two_files_of_tests_are_called_alike() -> None:
    names = [file.name for file in written(".py") if file.name.startswith("test_")]
    assert sorted(names) == sorted(set(names)), "pytest imports them by name and takes one for the other"


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"
        for file in sources()
        for node in definitions(file)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno > MOST_FUNCTION_LINES
    ]
    assert not long


def test_every_module_and_every_public_name_has_a_docstring() -> None:
    bare: list[str] = []
    for file in sources():
        tree = ast.parse(file.read_text())
        if not ast.get_docstring(tree):
            bare.append(str(file.relative_to(ROOT)))
        bare += [
            f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ]
    assert not bare


def test_class_names_use_the_vocabulary() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} {node.name}"
        for file in sources()
        for node in definitions(file)
        if isinstance(node, ast.ClassDef) and any(re.search(rf"{w}(?![a-z])", node.name) for w in FOREIGN_WORDS)
    ]
    assert not wrong


def test_every_file_that_decides_is_under_the_pure_contract() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    pure = set(config["importlinter:contract:pure"]["source_modules"].split())
    deciding = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in sources() if file.stem in PURE_NAMES
    }
    assert deciding - pure == set()


@pytest.mark.parametrize(
    "pattern",
    [
        r"registry\.npmjs", r"pypi\.org", r"pythonhosted", r"deb\.debian\.org", r"/work/(main|shared)", r"/LAB\b",
        r"\bissue #?\d", r"(?<![\w-])TODO\b",
    ],
)  # fmt: skip
def test_the_repository_speaks_of_the_project_alone(pattern: str) -> None:
    here = Path(__file__)
    found = [
        str(file.relative_to(ROOT))
        for file in written(".py", ".md", ".json", ".cfg", ".toml", ".sh", ".lock", ".txt", ".js", "Makefile", "run")
        if file != here and re.search(pattern, file.read_text(errors="replace"))
    ]
    assert not found
