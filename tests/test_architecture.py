"""The page on the architecture says what is where, and which package imports which. It is held to both here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import conn_hygiene
from conn_hygiene.reaper import reaper

PACKAGE = Path(conn_hygiene.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "architecture.rst"
PACKAGE_ROW = re.compile(r"^   \* - ``(?P<name>\w+)``\n     - .+\n     -(?P<imports>.*)$", re.MULTILINE)
THREAD_ROW = re.compile(r"^   \* - ``(conn-hygiene-[^`]+)``$", re.MULTILINE)
MODULE_ROW = re.compile(r"^   \* - ``(?P<name>\w+/\w+)``\n     - .+$", re.MULTILINE)

# Of these, each module is on its own: it imports what it needs, and is imported where its server may be met.
APART = {"contrib"}


def listed_packages() -> dict[str, set[str]]:
    """Return what each package or module of the table imports when it runs, from the lowest to the highest."""
    return {row["name"]: set(re.findall(r"\w+", row["imports"])) for row in PACKAGE_ROW.finditer(_page())}


def listed_modules() -> list[str]:
    """Return the modules that the page lists inside of packages, in its order."""
    return [row["name"] for row in MODULE_ROW.finditer(_page())]


def _page() -> str:
    return PAGE.read_text("utf-8")


def files_of(name: str) -> list[Path]:
    return [*(PACKAGE / name).rglob("*.py")] if (PACKAGE / name).is_dir() else [PACKAGE / f"{name}.py"]


def imports_of(files: list[Path]) -> set[str]:
    """Return the modules of the package, by dotted names, that *files* need when they run, those for types left out."""
    return {name for file in files for name in _imported(ast.parse(file.read_text("utf-8")))}


def _imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{conn_hygiene.__name__}."):
            within = str(node.module).split(".")[1:]
            found |= {".".join(_module([*within, alias.name])) for alias in node.names}
        found |= _imported(node)
    return found - {""}


def _module(path: list[str]) -> list[str]:
    """Return *path*, or that of the module in which its last part is a name."""
    file = PACKAGE.joinpath(*path)
    return path if file.is_dir() or file.with_suffix(".py").exists() else path[:-1]


def is_package_or_module(path: Path) -> bool:
    return path.suffix == ".py" or (path / "__init__.py").exists()


def test_the_table_lists_every_package_and_what_it_imports() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if is_package_or_module(path)} - {"__init__"} - APART
    found = {name: {path.split(".")[0] for path in imports_of(files_of(name))} - {name} for name in names}
    assert listed_packages() == found


def test_nothing_imports_from_above_it() -> None:
    below = {*APART}
    for name, imports in listed_packages().items():
        assert imports <= below, f"{name} stands below what it imports"
        below.add(name)


def test_every_module_of_a_package_is_listed_below_those_that_it_imports() -> None:
    listed = listed_modules()
    packages = {each.split("/")[0] for each in listed}
    for package in packages:
        modules = [each.split("/")[1] for each in listed if each.startswith(f"{package}/")]
        assert sorted(modules) == sorted({file.stem for file in files_of(package)} - {"__init__"})
        for place, module in enumerate(modules):
            within = {
                path.split(".")[1]
                for path in imports_of([PACKAGE / package / f"{module}.py"])
                if path.startswith(f"{package}.")
            }
            assert within <= {*modules[:place]}, f"{package}/{module} stands above what it imports"
    # The command's are for Django to find, and contrib's are named after what they are for.
    assert packages == {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - APART - {"management"}


def test_every_thread_is_listed() -> None:
    """By the names that they are given: of workers, that is their lane's."""
    code = "".join(file.read_text("utf-8") for file in PACKAGE.rglob("*.py"))
    found = re.findall(r'(?:\bThread\(.*\bname=|\b(?:JobThread|covered|daemon_thread)\()"(conn-hygiene-[^"]+)"', code)
    lanes = re.findall(r'_workers\.put\((?:f"{[\w.]+}( [a-z]+)"|(_[A-Z]+)),', code)
    found += [f"conn-hygiene-{f'<alias>{kind}' if kind else getattr(reaper, constant)}" for kind, constant in lanes]
    assert sorted(found) == sorted(THREAD_ROW.findall(_page()))


def test_a_package_says_its_idea_and_nothing_else() -> None:
    for file in PACKAGE.glob("*/__init__.py"):
        statements = ast.parse(file.read_text("utf-8")).body
        assert [ast.get_docstring(ast.Module([each], [])) is not None for each in statements] == [True], file
