import os
from pathlib import Path

import pytest
from doubler import Doubler
from folders import check_results, make

from mambair_cli.batch.arrivals import Arrivals, restore_arrivals
from mambair_cli.batch.jobs import Job
from mambair_cli.batch.restore_files import Request, restore_files
from mambair_cli.models.tasks import TASKS
from mambair_cli.restore import upscaler

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_a_file_is_handed_out_once_it_stays_the_same():
    a, arrivals = Path("a.png"), Arrivals()
    jobs = [Job(a, Path("out.png"))]
    assert (arrivals.look(jobs), arrivals.waiting) == ([], False)
    a.touch()
    # It has begun, and holds nothing yet.
    assert arrivals.look(jobs) == arrivals.look(jobs) == []
    for size in (1, 2):
        a.write_bytes(b"x" * size)
        assert (arrivals.look(jobs), arrivals.waiting) == ([], True)
    assert (arrivals.look(jobs), arrivals.waiting) == (jobs, False)
    assert arrivals.look(jobs) == []
    a.write_bytes(b"xxx")
    os.utime(a, ns=(1, 1))
    assert arrivals.look(jobs) == []
    assert arrivals.look(jobs) == jobs


def test_what_arrives_is_restored(monkeypatch):
    stand_in = Doubler()
    monkeypatch.setattr(upscaler, "Upscaler", lambda choice, options: stand_in)
    Path("in").mkdir()
    records = []

    def looks():
        # an empty folder is no error
        yield True
        make("in/a.png", "in/b.png")
        yield True
        yield False
        assert {record.input for record in records} == {"in/a.png", "in/b.png"}
        Path("in/bad.png").write_bytes(b"no image")
        make("in/a.png", "in/b.png", "in/c.png")
        yield from (True, False, False, True, True)

    def restore(plan):
        restore_files(plan, done=records.append, progress=lambda *_: None)

    request = Request(TASKS["upscale"], ("in",), "out/", scale=2, advice=False)
    restore_arrivals(request, looks(), restore)
    check_results(["a.png", "b.png", "c.png"])
    # A bad file is tried once.
    assert [record.input for record in records if record.error] == ["in/bad.png"]
