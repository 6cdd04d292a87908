import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from failing import fails
from folders import files_in, make
from hypothesis import given
from hypothesis import strategies as st

from mambair_cli.batch.jobs import Job, find_jobs
from mambair_cli.batch.listing import MANIFEST, natural_key
from mambair_cli.errors import CallError

pytestmark = pytest.mark.usefixtures("empty_folder")


def targets(*arguments, **options):
    """From the source to the target of each job, as text, in their order."""
    jobs, _ = find_jobs(*arguments, **options)
    return {str(job.source): str(job.target) for job in jobs}


def test_a_tree_is_mirrored_in_natural_order():
    names = ["b10.png", "b2.png", "B3.png", "a/x.png", "a b/ü 写真.jpg", "a/b/c.TIF"]
    make(*(f"in/{name}" for name in names), "in/.hidden.png", "in/.git/x.png")
    Path("in/text.txt").touch()
    Path("in/folder.png").mkdir()
    Path("in/link").symlink_to("a")
    Path("in/link.png").symlink_to("b2.png")
    found = targets(["in"], "out")
    order = ["a b/ü 写真.jpg", "a/b/c.TIF", "a/x.png", "b2.png", "B3.png", "b10.png", "link.png"]
    assert found == {f"in/{name}": f"out/{name}" for name in order}
    assert list(found) == [f"in/{name}" for name in order]
    assert targets(["in/"], "out/") == found
    assert not Path("out").exists()


def test_several_inputs():
    make("a/x.png", "b/x.png", "b/y.png", "c/b/y.png", "z.png")
    assert targets(["a", "b"], "o") == {
        "a/x.png": "o/a/x.png",
        "b/x.png": "o/b/x.png",
        "b/y.png": "o/b/y.png",
    }
    assert targets(["z.png", "a"], "o") == {"a/x.png": "o/a/x.png", "z.png": "o/z.png"}
    assert targets(["a/x.png", "./a/x.png", "a"], "o") == {"a/x.png": "o/x.png"}  # once
    assert targets(["a/x.png", "b/x.png"], "o") == {"a/x.png": "o/x.png", "b/x.png": "o/x.png.png"}
    assert targets(["b", "c/b"], "o")["c/b/y.png"] == "o/b/y.png.png"
    assert targets(["z.png"], "o/") == {"z.png": "o/z.png"}
    Path("o").mkdir()
    assert targets(["z.png"], "o") == {"z.png": "o/z.png"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["a.png", "a.bmp", "a.gif.png", "a.jpg"]),
        ({"suffix": "_x2"}, ["a_x2.png", "a_x2.bmp", "a.gif_x2.png", "a_x2.jpg"]),
        ({"format": "jpg"}, ["a.png.jpg", "a.bmp.jpg", "a.gif.jpg", "a.jpg"]),
        ({"format": "WebP"}, ["a.png.webp", "a.bmp.webp", "a.gif.webp", "a.jpg.webp"]),
    ],
    ids=str,
)
def test_inputs_of_one_name_do_not_collide(options, expected):
    names = ["a.png", "a.bmp", "a.gif", "a.jpg"]
    make(*(f"in/{name}" for name in names))
    found = targets(["in"], "o", **options)
    assert [found[f"in/{name}"] for name in names] == [f"o/{name}" for name in expected]
    given = [f"in/{name}" for name in names]
    assert targets(given, "o", **options) == targets(given[::-1], "o", **options) == found
    make("in/a.jpg.png")  # which one of the others would like to be
    found = targets(["in"], "o", **options | {"format": "png"})
    assert len(set(found.values())) == 5


def test_names_differ_also_where_the_case_is_ignored():
    make("in/a.png", "in/A.png", "in/Ä.gif", "in/ä.bmp")
    assert len({name.casefold() for name in targets(["in"], "o").values()}) == len(
        list(Path("in").iterdir())
    )


def test_the_output_folder_is_not_read_again():
    make("in/a.png", "in/b/c.png")
    first = targets(["in"], "in/out")
    make("in/out/a.png", "in/out/b/c.png")
    assert targets(["in"], "in/out") == targets(["./in"], "in/out/") == first
    assert targets(["in"], "in/b/../out").keys() == first.keys()
    Path("link").symlink_to("in/out")
    assert targets(["in"], "link").keys() == first.keys()
    fails(lambda: find_jobs(["in"], "in"), CallError, "in: is the folder of the inputs as well")
    fails(lambda: find_jobs(["in", "in/a.png"], "in/b/.."), CallError)
    assert targets(["in/b"], "in") == {"in/b/c.png": "in/c.png"}


@pytest.mark.parametrize("how", ["itself", "symbolic", "hard"])
def test_never_over_an_input(how):
    make("in/a.png", "b.png")
    if how == "itself":
        calls = [
            (["in/a.png", "b.png"], "in"),
            (["in"], "o"),
            (["b.png"], "./in/../b.png"),
            (["b.png"], "./"),
        ]
        Path("o").symlink_to("in")
    else:
        Path("o").mkdir()
        getattr(Path("o/a.png"), f"{how}link_to".replace("symbolic", "sym"))(
            Path("in/a.png").resolve()
        )
        calls = [
            (["in"], "o"),
            (["in/a.png"], "o"),
            (["in/a.png"], "o/a.png"),
            (["in/a.png", "b.png"], "o/"),
        ]
    for inputs, output in calls:
        with pytest.raises(CallError, match=r"is the (input itself|folder of the inputs)"):
            find_jobs(inputs, output)
    assert targets(["in/a.png", "b.png"], "in", suffix="_x2")["in/a.png"] == "in/a_x2.png"


def test_globs():
    make("in/a.png", "in/b.jpg", "in/trip/c.jpg", "in/trip/d.png", "z.png")
    assert list(targets(["in"], "o", globs=["*.jpg"])) == ["in/b.jpg", "in/trip/c.jpg"]
    assert list(targets(["in"], "o", globs=["trip/*"])) == ["in/trip/c.jpg", "in/trip/d.png"]
    assert list(targets(["in", "z.png"], "o", globs=["a*", "[d]*"])) == [
        "in/a.png",
        "in/trip/d.png",
        "z.png",
    ]
    make("in/a.gif")
    assert targets(["in"], "o", globs=["*.gif"]) == {
        "in/a.gif": "o/a.gif.png"
    }  # as without the glob
    fails(
        lambda: find_jobs(["in"], "o", globs=["*.bmp", ""]),
        CallError,
        "in: no image found that matches `glob`",
    )


def test_one_file():
    make("p/a.b.png", "p/still.gif")
    assert targets(["p/a.b.png"], None, default_suffix="_x2") == {"p/a.b.png": "p/a.b_x2.png"}
    assert targets(["p/still.gif"], None, default_suffix="_x2") == {"p/still.gif": "p/still_x2.png"}
    options = {"default_suffix": "_x2", "format": "webp"}
    assert targets(["p/a.b.png"], None, **options) == {"p/a.b.png": "p/a.b_x2.webp"}
    assert targets(["p/a.b.png"], None, suffix="-big", **options) == {"p/a.b.png": "p/a.b-big.webp"}
    assert targets(["p/a.b.png"], None, suffix="", **options) == {"p/a.b.png": "p/a.b.webp"}
    assert targets(["p/a.b.png"], "out.tif", default_suffix="_x2") == {"p/a.b.png": "out.tif"}
    assert find_jobs(["p/a.b.png"], "out.tif")[1] is None
    for options in ({"suffix": "x"}, {"format": "tif"}):
        fails(
            lambda options=options: find_jobs(["p/a.b.png"], "o.tif", **options),
            CallError,
            "leave out `suffix`",
        )


def test_pipes(monkeypatch):
    make("a.png", "still.gif")
    assert find_jobs(["-"], "a.tif") == ([Job(None, Path("a.tif"))], None)
    assert find_jobs(["-"], "-") == ([Job(None, None, ".png")], None)
    assert find_jobs(["-"], "-", format="jpg") == ([Job(None, None, ".jpg")], None)
    assert find_jobs(["still.gif"], "-") == ([Job(Path("still.gif"), None, ".png")], None)
    Path("-").touch()
    assert find_jobs(["./-"], "o.png")[0] == [Job(Path("-"), Path("o.png"))]
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    fails(lambda: find_jobs(["a.png"], "-"), CallError, "terminal")


@pytest.mark.parametrize(
    ("inputs", "output", "options", "words"),
    [
        ("missing.png", None, {}, "missing.png: no such file; check the path"),
        ("a.png missing", "o", {}, "missing: no such file"),
        ("a.png/x.png", "o", {}, "a.png/x.png: no such file"),
        ("dangling.png", "o.png", {}, "dangling.png: no such file"),
        ("empty", None, {}, "empty: is a folder; name a folder for the results with `output`"),
        ("empty", "o", {}, "empty: no image found"),
        (
            "a.png b.png",
            None,
            {},
            "several inputs need a folder for the results; name one with `output`",
        ),
        ("a.png b.png", "a.png", {}, "a.png: is a file; name a folder"),
        ("a.png", "b.png/", {}, "b.png: is a file; name a folder"),
        ("a.png", "none/o.gif", {}, "none/o.gif: unknown suffix"),
        ("a.png", "o.gif", {}, "o.gif: unknown suffix"),
        ("a.png", "o", {}, "o: unknown suffix ''; add one such as .png, or a slash"),
        ("a.png", None, {"format": "gif"}, "`format` cannot be 'gif'; use one of png jpg"),
        ("a.png b.png", "o", {"format": "../png"}, "`format` cannot be"),
        ("a.png b.png", "o", {"suffix": "/../x"}, "`suffix` is a part of a file name"),
        ("- a.png", "o", {}, "works with one input only"),
        ("-", None, {}, "with `output`, or - for stdout"),
        ("-", "o", {}, "o: unknown suffix"),
        ("empty", "-", {}, "empty: is a folder"),
        ("missing.png", "-", {}, "missing.png: no such file"),
        ("-", "o.png", {"format": "jpg"}, "leave out `suffix` and `format`"),
    ],
)
def test_wrong_calls(inputs, output, options, words):
    make("a.png", "b.png")
    Path("empty").mkdir()
    Path("dangling.png").symlink_to("nowhere")
    before = files_in(".")
    fails(lambda: find_jobs(inputs.split(), output, **options), CallError, words)
    assert files_in(".") == before


@given(st.lists(st.text()))
def test_natural_order_of_any_names(names):
    ordered = sorted(names, key=natural_key)
    assert sorted(ordered) == sorted(names)


def test_natural_order():
    names = ["", "1.png", "2.png", "10.png", "A1.png", "a2.png", "b 3 x.png", "b 21.png"]
    assert sorted(random.Random(1).sample(names, 8), key=natural_key) == names


# What is not meant


def test_a_folder_does_not_become_a_file():
    make("in/a.png")
    words = "out.png: looks like a file, and the results need a folder; add a slash"
    fails(lambda: find_jobs(["in"], "out.png"), CallError, words)
    fails(lambda: find_jobs(["in/a.png", "in"], "new/out.jpg"), CallError, "new/out.jpg: looks")
    assert find_jobs(["in"], "out.png/")[1] == Path("out.png")
    Path("out.png").mkdir()
    assert find_jobs(["in"], "out.png")[1] == Path("out.png")


def test_the_folders_of_a_file_may_be_missing():
    make("a.png")
    ((job,), folder) = find_jobs(["a.png"], "new/deep/out.png")
    assert (job.target, folder) == (Path("new/deep/out.png"), None)
    assert not Path("new").exists()
    fails(lambda: find_jobs(["a.png"], "new/deep/out.gif"), CallError, "unknown suffix '.gif'")
    words = "a.png/b/out.png: a.png is a file, not a folder"
    fails(lambda: find_jobs(["a.png"], "a.png/b/out.png"), CallError, words)


def test_earlier_results_are_left_out_and_told():
    make("a.png", "b.jpg", "b_x4.png", "c_x2.png", "deep/d.png", "deep/d_x1.5.png", "old/a.png")
    Path("old", MANIFEST).touch()
    told = []
    jobs, _ = find_jobs(["."], "out", endings=r"_x\d+(\.\d+)?", note=told.append)
    # c_x2.png has no input beside it.
    assert [str(job.source) for job in jobs] == ["a.png", "b.jpg", "c_x2.png", "deep/d.png"]
    assert told == [
        "old: holds the results of an earlier run and is left out",
        ".: 2 earlier results are left out, such as b_x4.png; name files to take them",
    ]
    jobs, _ = find_jobs(["b_x4.png"], "out/", endings=r"_x\d+(\.\d+)?", note=told.append)
    assert [str(job.source) for job in jobs] == ["b_x4.png"]
    assert len(find_jobs(["."], "out")[0]) == 6
    assert len(told) == 2
