"""What the documents show works: their examples of Python run as they stand."""

import re
import shutil
from pathlib import Path

import PIL.Image
import pytest
import torch
from calls import DATA, PHOTO
from networks import network

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def examples(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)


EXAMPLES = examples("docs/python.md")


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """The working directory, with the files that the examples name."""
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(PHOTO).save("in.png")
    Path("photos").mkdir()
    for name in ("a", "b"):
        shutil.copy("in.png", f"photos/{name}.png")
    torch.save({"params": network().state_dict()}, "my_net.pth")
    return tmp_path


def size(path):
    with PIL.Image.open(path) as image:
        return image.size


def run(example):
    """Run it and return its variables."""
    variables = {}
    exec(compile(example, "docs/python.md", "exec"), variables)
    return variables


def test_there_are_six():
    assert len(EXAMPLES) == 6
    assert all(len(example.splitlines()) <= 12 for example in EXAMPLES)
    assert DATA.is_dir()


def test_readme_shows_the_first():
    assert examples("README.md") == EXAMPLES[:1]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8"))
    for link in (link for link in links if not link.startswith(("http", "#"))):
        assert (page.parent / link.partition("#")[0]).exists(), link


def test_an_image(scene):
    run(EXAMPLES[0])
    assert size("out.png") == (96, 72)


def test_tensors_and_several_arrays(scene):
    variables = run(EXAMPLES[1])
    assert variables["large"].shape == (3, 40, 60)
    assert variables["first"].shape == (32, 32, 3)
    assert variables["second"].shape == (32, 48)


def test_a_folder(scene):
    run(EXAMPLES[2])
    assert sorted(path.name for path in Path("photos").iterdir()) == [
        "a.png",
        "a_x2.png",
        "b.png",
        "b_x2.png",
    ]
    assert size("photos/a_x2.png") == (48, 36)


def test_progress(scene, capsys):
    run(EXAMPLES[3])
    shares = capsys.readouterr().out.split()
    assert shares[-1] == "100%"
    assert len(shares) > 6


def test_a_checkpoint_of_ones_own(scene, capsys):
    variables = run(EXAMPLES[4])
    assert capsys.readouterr().out.startswith("4 MambaIRConfig(")
    assert variables["restored"].shape == (80, 120, 3)
    assert variables["restored"].dtype == "float32"


def test_the_network_itself(scene):
    from mambair_cli import load_restorer

    run(EXAMPLES[5])
    before, after = (
        load_restorer(name, device="cpu").model.state_dict() for name in ("tiny-x2", "tuned.pth")
    )
    assert before.keys() == after.keys()
    assert all(
        not torch.equal(before[key], after[key])
        for key in before
        if key.endswith("conv_first.weight")
    )
