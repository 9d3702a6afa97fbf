"""The package as a whole: what importing it costs, and who may import whom."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import vfmtok

PACKAGE = Path(vfmtok.__file__).parent
# A room may import the rooms of the ranks below its own, and its own. The outermost is last.
RANKS = [
    {"arguments", "checks", "config", "distributed", "errors", "files", "hub", "layers"},
    {"tokenizer", "generator"},
    {"data", "discriminators", "losses"},
    {"training", "evaluation"},
    {"demo"},
    {"cli", "__main__"},
]


def _imports(path: Path) -> set[str]:
    """The rooms of vfmtok that a file imports."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "vfmtok":  # a room, or a public name that lives in one
                names = [vfmtok._HOME.get(alias.name, f"vfmtok.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("vfmtok.") and name != "vfmtok.__version__"}
    return rooms


def test_imports_go_one_way():
    rank = {room: index for index, rooms in enumerate(RANKS) for room in rooms}
    checked = 0
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in rank, f"give the room '{room}' a rank"
        for other in _imports(path) - {room}:
            assert rank[other] <= rank[room], f"{path.name} ({room}) imports {other}"
            assert {room, other} != {"tokenizer", "generator"}, "the generator is handed a tokenizer"
            checked += 1
    assert checked > 5


def test_import_is_quick_and_needs_no_torch():
    """Less than 3 s is promised: what takes longer may not be imported before it is used."""
    program = (
        "import sys, vfmtok; assert not {'torch', 'timm', 'torchvision'} & set(sys.modules); print(vfmtok.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == vfmtok.__version__, done.stderr


def test_public_names_exist():
    for name in dir(vfmtok):
        assert getattr(vfmtok, name) is not None


def test_rooms_tell_what_is_in_them():
    """A large room's docstring names each of its files: where one looks for a thing first."""
    for room in ("data", "evaluation", "hub", "training"):
        text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))
        missing = [path.stem for path in (PACKAGE / room).glob("[!_]*.py") if not re.search(rf"\b{path.stem}\b", text)]
        assert not missing, f"vfmtok/{room}/__init__.py does not name {missing}"


def test_files_stay_readable():
    for path in PACKAGE.rglob("*.py"):
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 350, f"{path} has {lines} lines"
        assert path.stem not in {"utils", "misc", "common", "helpers", "engine", "core"}
