"""The page on the architecture says which module imports which, and is held to it here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import conn_hygiene

PACKAGE = Path(conn_hygiene.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "architecture.rst"
ROW = re.compile(r"^   \* - ``(?P<module>\w+)``\n     - .+\n     -(?P<imports>.*)$", re.MULTILINE)


def documented() -> dict[str, set[str]]:
    """Return what the table says, in its order."""
    return {row["module"]: set(re.findall(r"\w+", row["imports"])) for row in ROW.finditer(PAGE.read_text("utf-8"))}


def imports_of(module: str) -> set[str]:
    """Return the modules of the package that *module* needs when it runs, those for type checkers left out."""
    if (PACKAGE / module).is_dir():
        files = [*(PACKAGE / module).rglob("*.py")]
    else:
        files = [PACKAGE / f"{module}.py"]
    return {name for file in files for name in _imported(ast.parse(file.read_text("utf-8")))} - {module}


def _imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module == conn_hygiene.__name__:
            found |= {alias.name for alias in node.names if _is_module(alias.name)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{conn_hygiene.__name__}."):
            found.add(str(node.module).split(".")[1])
        found |= _imported(node)
    return found


def _is_module(name: str) -> bool:
    return (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()


def test_the_table_lists_every_module_and_what_it_imports() -> None:
    modules = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__"} | {"management"}
    assert documented() == {module: imports_of(module) for module in modules}


def test_nothing_imports_from_below_it() -> None:
    # Of contrib, each module is on its own: it imports what it needs, and is imported where its server may be met.
    above = {"contrib"}
    for module, imports in documented().items():
        assert imports <= above, f"{module} stands above what it imports"
        above.add(module)
