"""What holds for the package as a whole: who imports whom, what ships, and that the checkers are
content.
"""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from failing import fails

import mambair_cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mambair_cli"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
MODULES = sorted(PACKAGE.rglob("*.py"))
every_module = pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE))
)

# Each folder imports only from the layers before its own; and from itself.
LAYERS = (
    {"errors"},
    {"system", "ops"},
    {"archs", "images"},
    {"degradations", "models"},
    {"restore", "spandrel"},
    {"batch", "training"},
    {"pages"},
    {"bench"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
# loaded by `mambair --help`
LIGHT = (
    "cli",
    "errors",
    "commands",
    "models.catalog",
    "models.choice",
    "models.cache",
    "system.runtime",
    "restore.options",
    "restore.size",
    "batch.restore_files",
)
HEAVY = {"torch", "numpy", "numba", "cv2", "PIL", "safetensors", "tqdm"}


def part_of(path):
    """The module directly in the package, or the folder, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Full names of all that a file imports, also within functions, as if all were absolute."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["mambair_cli", *path.relative_to(PACKAGE).parts[:-1]][
                : -node.level + 1 or None
            ]
            base = ".".join(
                [*(package if node.level else []), *([node.module] if node.module else [])]
            )
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own_parts(path):
    """The parts of this package that a file imports from."""
    parts = {name.split(".")[1] for name in imports(path) if name.startswith("mambair_cli.")}
    return parts - {"__version__"}


def strings(path):
    """All strings of a file and of its f-strings, without docstrings, with their lines."""
    tree = ast.parse(path.read_text("utf-8"))
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in documents:
            yield node.lineno, node.value


def flags(path):
    """The options of a command line that the strings of a file name, with their lines."""
    texts = ((line, text) for line, text in sorted(strings(path)) if "pip install" not in text)
    found = ((line, re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) for line, text in texts)
    return [f"{line}: {' '.join(names)}" for line, names in found if names]


def private(name):
    return name.startswith("_") and not name.startswith("__")


def foreign_privates(path):
    """Private names of other folders that a file imports, or reaches for through a module."""
    folder = ".".join(["mambair_cli", *path.relative_to(PACKAGE).parts[:-1]])
    found = [
        name
        for name in imports(path)
        if private(name.split(".")[-1]) and name.rpartition(".")[0].rpartition(".")[0] != folder
    ]
    tree = ast.parse(path.read_text("utf-8"))
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level > 1
        for alias in node.names
    }
    for node in ast.walk(tree):
        through = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if through and node.value.id in ours and private(node.attr):
            found.append(f"{node.value.id}.{node.attr}")
    return found


def test_imports_are_read_right(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    path = tmp_path / "ops" / "scan.py"
    path.parent.mkdir()
    lines = [
        "import a.b, c",
        "from . import d",
        "from .e import f",
        "from .. import g",
        "from ..h import i",
        "from mambair_cli.j import k",
        "def late():",
        "    from ..l.m import n",
    ]
    path.write_text("\n".join(lines))
    ours = "ops.d", "ops.e.f", "g", "h.i", "j.k", "l.m.n"
    assert list(imports(path)) == ["a.b", "c", *(f"mambair_cli.{name}" for name in ours)]
    assert own_parts(path) == {"ops", "g", "h", "j", "l"}


@every_module
def test_dependencies_point_downwards(path):
    part = part_of(path)
    if path == PACKAGE / "__init__.py":
        # restore and images only when they are asked for
        assert own_parts(path) == {"models", "system", "restore", "images"}
        return
    above = {other for other in own_parts(path) if LAYER[other] >= LAYER[part]}
    assert above <= ({part} if path.parent != PACKAGE else set())


def test_few_modules_lie_at_the_top():
    top = {path.stem for path in PACKAGE.glob("*.py")}
    assert top == {"__init__", "__main__", "cli", "errors"}


def test_private_names_of_others_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    path = tmp_path / "ops" / "scan.py"
    path.parent.mkdir()
    lines = [
        "from .simd import _near",
        "from ..images.io import _far",
        "from ..images import io, _module",
        "import numpy",
        "io._reach; numpy._core; io.__name__; self._own",
    ]
    path.write_text("\n".join(lines))
    assert foreign_privates(path) == [
        "mambair_cli.images.io._far", "mambair_cli.images._module", "io._reach"
    ]  # fmt: skip


@every_module
def test_what_is_private_stays_in_its_folder(path):
    assert foreign_privates(path) == []


LONGEST = 80
# Programs for another compiler, written in one piece so that it keeps values in registers.
KERNELS = {"scan_numba", "triton_kernels"}


@every_module
def test_no_function_is_long(path):
    if path.stem in KERNELS:
        return
    functions = (
        node
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_flags_are_found(tmp_path):
    path = tmp_path / "some.py"
    path.write_text(
        '"""Like --this."""\ndef f(x):\n    """Or --that."""\n    print(f"{x}: give --tile, -m")\n'
        '    return "a--b", "--", "try --memory-limit 4"'
    )
    assert flags(path) == ["4: --tile", "5: --memory-limit"]


@every_module
def test_only_commands_speak_of_flags(path):
    """The core names the field, in backticks; `commands.terminal.as_flags` names the flag."""
    # `bench/__main__.py` is a command line of its own.
    if part_of(path) not in ("commands", "cli") and path.name != "__main__.py":
        assert not flags(path)


@pytest.mark.parametrize("name", ["mambair_cli", *(f"mambair_cli.{part}" for part in LIGHT)])
def test_light_modules_import_nothing_heavy(name):
    program = f"import sys, {name}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert name in done.stdout.split()
    assert not HEAVY & set(done.stdout.split())


def test_the_package_imports_its_dependencies_and_nothing_else():
    distributions = {"PIL": "pillow", "cv2": "opencv-python-headless", "llvmlite": "numba"}
    distributions |= {"pillow_heif": "pillow-heif", "pillow_jxl": "pillow-jxl-plugin"}
    distributions |= {"mamba_ssm": "mamba-ssm", "yaml": "pyyaml"}
    distributions |= {"huggingface_hub": "huggingface-hub"}
    imported = {name.split(".")[0] for path in MODULES for name in imports(path)}
    # triton comes with torch for GPUs
    imported -= {
        "mambair_cli",
        "tomllib",
        "triton",
        *sys.stdlib_module_names,
    }
    extras = PROJECT["project"]["optional-dependencies"]
    required = [
        PROJECT["project"]["dependencies"],
        *(extras[name] for name in extras if name != "test"),
    ]
    declared = {re.match(r"[\w-]+", line)[0] for lines in required for line in lines}
    # by torch.utils.tensorboard, by tifffile, and by fsspec
    imported |= {"tensorboard", "imagecodecs", "s3fs", "gcsfs", "huggingface-hub"}
    assert {distributions.get(name, name) for name in imported} == declared
    assert not declared & {"torchvision", "timm", "basicsr", "einops", "opencv-python"}


def test_nothing_of_triton_is_imported_where_it_does_not_run():
    # both fail to be imported
    program = "import sys; sys.modules |= dict.fromkeys(['triton', 'mamba_ssm'])\n"
    program += "from mambair_cli.ops import BACKENDS, resolve_backend\nfrom mambair_cli.commands.doctor import report\n"
    program += "report(); print(resolve_backend('auto', 'cpu').name, 'mambair_cli.ops.scan_triton' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["numba", "False"]


def test_the_public_names():
    functions = {"list_models", "load_restorer", "read_image", "write_image"}
    assert set(mambair_cli.__all__) == functions | {"Image", "Model", "Restorer"}
    assert all(callable(getattr(mambair_cli, name)) for name in mambair_cli.__all__)


def test_files_are_read_and_written_from_the_root(tmp_path):
    image = mambair_cli.Image(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    assert mambair_cli.write_image(tmp_path / "a.png", image) == []
    assert np.array_equal(mambair_cli.read_image(tmp_path / "a.png").pixels, image.pixels)


def test_other_names_are_not_public():
    fails(lambda: mambair_cli.load_model, AttributeError, "mambair_cli", "load_model")


@every_module
def test_every_module_has_its_tests(path):
    names = {"mambair_cli/__init__.py": "package", "mambair_cli/__main__.py": "cli"}
    relative = path.relative_to(PACKAGE)
    if path.stem == "__init__" and path.parent != PACKAGE:
        # only names what the folder offers
        return
    name = names.get(path.relative_to(ROOT).as_posix(), path.stem.strip("_"))
    assert (ROOT / "tests" / relative.parent / f"test_{name}.py").is_file()


@pytest.mark.parametrize(
    "command",
    [["ruff", "check"], ["ruff", "format", "--check", "mambair_cli", "tests"], ["mypy"]],
    ids=" ".join,
)
def test_checkers_are_content(command):
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_changelog_begins_with_this_version():
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert heading[1] == mambair_cli.__version__


def test_what_ships():
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    # where `bundled_folder` looks first
    assert wheel["force-include"] == {"weights": "mambair_cli/weights"}
    assert wheel["packages"] == ["mambair_cli"]
    assert PROJECT["project"]["scripts"] == {"mambair": "mambair_cli.cli:main"}


def test_the_wheel(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.iterdir()
    assert wheel.name == f"mambair-{mambair_cli.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    expected = {path.relative_to(ROOT).as_posix() for path in MODULES}
    expected |= {
        path.relative_to(ROOT).as_posix()
        for kind in ("css", "csv", "html", "js", "toml", "typed")
        for path in PACKAGE.rglob(f"*.{kind}")
    }
    expected |= {f"mambair_cli/weights/{path.name}" for path in (ROOT / "weights").iterdir()}
    assert names == expected
