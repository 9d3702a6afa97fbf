"""The package as a whole: what importing it costs, and who may import whom."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import vfmtok

PACKAGE = Path(vfmtok.__file__).parent
# A room may import the rooms of the lines above its own, and its own; rooms of one line do not import each other.
RANKS = [
    {"errors", "waiting"},
    {"trees"},
    {"config", "files", "distributed"},
    {"code"},
    {"families", "metrics"},
    {"layers", "weights", "sources"},
    {"encoders", "quantizers", "decoders", "data", "pictures"},
    {"discriminators", "losses"},
    {"tokenizers", "generators"},
    {"pretrained"},
    {"training", "evaluation"},
    {"demo", "study", "forecast"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
ALLOWED = {  # between rooms of one line: who may import whom
    "weights": {"layers"},
    "pictures": {"data"},
    "losses": {"discriminators"},
}


def _imports(path: Path) -> set[str]:
    """The rooms of vfmtok that a file imports, inside functions too; "" for the package itself, the outermost."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
            if node.module == "vfmtok":  # a room, or a public name that lives in one
                names = [vfmtok._HOME.get(alias.name, f"vfmtok.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name == "vfmtok":  # ``vfmtok.GPT`` reaches every room
                rooms.add("")
            elif name.startswith("vfmtok.") and name != "vfmtok.__version__":
                rooms.add(name.split(".")[1])
    return rooms


def test_imports_go_one_way():
    rank = {room: index for index, rooms in enumerate(RANKS) for room in rooms} | {"": len(RANKS)}
    checked, wrong = 0, []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in rank, f"give the room '{room}' a rank"
        for other in sorted(_imports(path) - {room}):
            fits = rank[other] < rank[room] or (rank[other] == rank[room] and other in ALLOWED.get(room, ()))
            checked += 1
            if not fits:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {other or 'the whole package'}")
    assert checked > 200
    assert not wrong, "\n".join(wrong)


def test_no_room_is_too_large():
    """At most 15% of the package's lines: a room that outgrows it holds two ideas."""
    lines = {}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        lines[room] = lines.get(room, 0) + path.read_text(encoding="utf-8").count("\n")
    too_large = {room: count for room, count in lines.items() if count > 0.15 * sum(lines.values())}
    assert not too_large, f"of {sum(lines.values())} lines: {too_large}"


def test_import_is_quick_and_needs_no_torch():
    """Less than 3 s is promised: what takes longer may not be imported before it is used."""
    program = (
        "import sys, vfmtok; assert not {'torch', 'timm', 'torchvision'} & set(sys.modules); print(vfmtok.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == vfmtok.__version__, done.stderr


def test_timm_is_imported_where_a_model_is_built():
    """It takes as long as PyTorch: commands, recipes and generators wait for nothing."""
    program = (
        "import sys, vfmtok.commands.evaluation_scripts, vfmtok.commands.codes, vfmtok.commands.agreement\n"
        "import vfmtok.commands.reproduce, vfmtok.training.train_tokenizer, vfmtok.training.train_generator, vfmtok\n"
        "vfmtok.GPT, vfmtok.RAR, vfmtok.VFMTok, vfmtok.Hita, vfmtok.VQGAN\n"
        "print({'timm', 'torchvision', 'torch._dynamo'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_public_names_exist():
    for name in dir(vfmtok):
        assert getattr(vfmtok, name) is not None


def test_rooms_tell_what_is_in_them():
    """A large room's docstring names each of its files: where one looks for a thing first."""
    for folder in PACKAGE.rglob("__init__.py"):
        files = [path.stem for path in folder.parent.glob("[!_]*.py")]
        if folder.parent == PACKAGE or len(files) < 5:
            continue
        text = ast.get_docstring(ast.parse(folder.read_text(encoding="utf-8"))) or ""
        missing = [name for name in files if not re.search(rf"\b{name}\b", text)]
        assert not missing, f"{folder.relative_to(PACKAGE)} does not name {missing}"


def test_the_page_on_architecture_has_every_room(root):
    table = (root / "docs/architecture.md").read_text().split("## Rooms")[1].split("\n\n")[2]
    named = {name.rstrip("/") for row in table.splitlines() for name in re.findall(r"`([a-z_]+/?)`", row.split("|")[1])}
    assert named == set().union(*RANKS) - {"__main__"}


def test_files_stay_readable():
    for path in PACKAGE.rglob("*.py"):
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 350, f"{path} has {lines} lines"
        assert path.stem not in {"utils", "misc", "common", "helpers", "engine", "core"}
