import functools
import http.server
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from buckets import SECRET, broken, busy, slow
from doubler import SETTINGS, Doubler, doubled
from failing import fails
from folders import make, pixels_of, statuses

from mambair_cli.batch import cloud
from mambair_cli.batch.cloud import CloudManifest
from mambair_cli.batch.jobs import find_jobs
from mambair_cli.batch.manifest import MANIFEST, Manifest, Record
from mambair_cli.batch.pipeline import Batch
from mambair_cli.batch.shards import Shard, share
from mambair_cli.errors import CallError
from mambair_cli.images.io import decode_image
from mambair_cli.restore.size import Size
from mambair_cli.system import urls
from mambair_cli.system.urls import Url

pytestmark = pytest.mark.usefixtures("empty_folder")


def restore(inputs, output, restorer=None, shard=None, settings=SETTINGS):
    """Restore inputs into a folder, one of which is at a URL: what became of each."""
    jobs, folder = find_jobs([str(name) for name in inputs], output)
    if shard:
        jobs = share(jobs, folder, shard)
    kind = CloudManifest if isinstance(folder, Url) else Manifest
    records = []
    Batch(restorer or Doubler(), Size(2), None, kind(folder, settings, shard)).run(
        jobs, records.append, lambda *_: None
    )
    restore.told = {record.input.rpartition("/")[2]: record for record in records}
    return statuses(restore.told)


def upload(proxy, *names):
    make(*names)
    for name in names:
        proxy.put(name, Path(name).read_bytes())


def test_from_a_bucket_to_a_bucket(bucket):
    upload(bucket, "in/a.png", "in/b/c.jpg", "in/10.png", "in/9.png", "in/.hidden.png")
    bucket.put("in/notes.txt", b"no image")
    bucket.put("in/bad.png", b"no image")
    done = restore(["s3://photos/in/"], "s3://photos/out/")
    expected = dict.fromkeys(("a.png", "c.jpg", "10.png", "9.png"), "ok")
    assert done == expected | {"bad.png": "failed"}
    assert list(done)[:2] == ["9.png", "10.png"]
    assert [name for name in bucket.names() if name.startswith("out/")] == [
        f"out/{MANIFEST}", "out/10.png", "out/9.png", "out/a.png", "out/b/c.jpg"
    ]  # fmt: skip
    result = decode_image(bucket.get("out/a.png"), "a.png").pixels
    np.testing.assert_array_equal(result, doubled(pixels_of(0)))
    assert restore.told["a.png"].output == "s3://photos/out/a.png"
    lines = [json.loads(line) for line in bucket.get(f"out/{MANIFEST}").splitlines()]
    assert sorted(line["output"] for line in lines) == [
        "10.png",
        "9.png",
        "a.png",
        "b/c.jpg",
        "bad.png",
    ]
    assert SECRET not in str(lines)
    # a second run does what is new, changed, missing, or failed
    upload(bucket, "in/a.png", "in/new.png")
    bucket.put("in/9.png", bucket.get("in/10.png"))
    bucket.client.delete_object(Bucket="photos", Key="out/b/c.jpg")
    done = restore(["s3://photos/in"], "s3://photos/out/")
    assert {name for name, status in done.items() if status == "skipped"} == {"10.png", "a.png"}
    done = restore(["s3://photos/in"], "s3://photos/out/", Doubler(pytest.fail))
    assert {name for name, status in done.items() if status != "skipped"} == {"bad.png"}


def test_between_a_bucket_and_this_machine(bucket):
    upload(bucket, "in/a.png", "in/b.png")
    assert restore(["in"], "s3://photos/up/") == {"a.png": "ok", "b.png": "ok"}
    assert restore(["s3://photos/in/"], "down") == {"a.png": "ok", "b.png": "ok"}
    assert bucket.get("up/a.png") == Path("down/a.png").read_bytes()
    assert restore(["s3://photos/in/"], "down", Doubler(pytest.fail)) == {
        "a.png": "skipped",
        "b.png": "skipped",
    }
    assert restore(["in"], "s3://photos/up/", Doubler(pytest.fail)) == {
        "a.png": "skipped",
        "b.png": "skipped",
    }


def test_shards_have_manifests_of_their_own(bucket):
    names = [f"{i}.png" for i in range(8)]
    upload(bucket, *(f"in/{name}" for name in names))
    first = restore(["s3://photos/in/"], "s3://photos/out/", shard=Shard(1, 3))
    assert 0 < len(first) < 8
    whole = restore(["s3://photos/in/"], "s3://photos/out/")
    assert {name for name, status in whole.items() if status == "skipped"} == set(first)
    assert {f"out/{MANIFEST}", "out/.mambair-1-of-3.jsonl"} <= set(bucket.names())


def test_an_upload_that_breaks_off_and_servers_that_are_busy_or_slow(
    bucket, new_connections, monkeypatch
):
    monkeypatch.setattr(urls, "TIMEOUT", 2)
    upload(bucket, "in/a.png", "in/b.png")
    puts = [(lambda method, path: method == "PUT", act) for act in (broken, busy, busy)]
    gets = [
        (lambda method, path: method == "GET" and "/in/" in path, act)
        for act in (busy, broken, slow(3))
    ]
    bucket.script = [*puts, *gets]
    assert restore(["s3://photos/in/"], "s3://photos/out/") == {"a.png": "ok", "b.png": "ok"}
    assert bucket.script == []
    for i, name in enumerate("ab"):
        result = decode_image(bucket.get(f"out/{name}.png"), name).pixels
        np.testing.assert_array_equal(result, doubled(pixels_of(i)))


def test_a_result_that_cannot_be_stored_fails_alone(bucket, monkeypatch):
    monkeypatch.setattr(urls, "ATTEMPTS", 2)
    upload(bucket, "in/a.png", "in/b.png")
    bucket.script = [(lambda method, path: method == "PUT" and "out/a.png" in path, busy)] * 99
    assert restore(["s3://photos/in/"], "s3://photos/out/") == {"a.png": "failed", "b.png": "ok"}
    assert restore.told["a.png"].error.startswith("s3://photos/out/a.png: cannot be written")
    assert "out/a.png" not in bucket.names()
    bucket.script = []
    assert restore(["s3://photos/in/"], "s3://photos/out/") == {"a.png": "ok", "b.png": "skipped"}


def test_an_interrupt_stores_the_manifest(bucket, monkeypatch):
    def at_work(image):
        if image.pixels.tobytes() == pixels_of(2).tobytes():
            raise KeyboardInterrupt

    monkeypatch.setattr(cloud, "STORED_EVERY", 1e9)
    upload(bucket, *(f"in/{i}.png" for i in range(4)))
    with pytest.raises(KeyboardInterrupt):
        restore(["s3://photos/in/"], "s3://photos/out/", Doubler(at_work))
    done = restore(["s3://photos/in/"], "s3://photos/out/")
    assert list(done.values()) == ["skipped", "skipped", "ok", "ok"]


def test_names_of_objects_that_lead_out_of_the_folder(bucket):
    upload(bucket, "in/a.png")
    for name in ("in//tmp/evil.png", "in/../../evil.png", "in/b/./evil.png", "in/.evil.png"):
        bucket.put(name, Path("in/a.png").read_bytes())
    jobs, _ = find_jobs(["s3://photos/in/"], "deep/down/out")
    assert [str(job.target) for job in jobs] == ["deep/down/out/a.png"]


def test_processes_of_torchrun_store_manifests_of_their_own(bucket, monkeypatch):
    folder = Url("s3://photos/out/", is_folder=True)
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        manifest = CloudManifest(folder, SETTINGS)
        manifest.append(Record("in/a.png", f"s3://photos/out/{rank}.png", "ok"))
        manifest.close()
    assert bucket.names() == [f"out/.mambair{part}.jsonl" for part in ("-rank-1", "-rank-2", "")]
    assert CloudManifest(folder, SETTINGS).names() == {"0.png", "1.png", "2.png"}


def test_single_objects(bucket):
    upload(bucket, "in/a.png")
    jobs, folder = find_jobs(["s3://photos/in/a.png"], "s3://photos/new/b.png")
    assert folder is None
    Batch(Doubler(), Size(2)).run(jobs, lambda record: None, lambda *_: None)
    assert decode_image(bucket.get("new/b.png"), "b").pixels.shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("inputs", "output", "words"),
    [
        (["s3://photos/in/a.png"], None, "name a file with `output`"),
        (["s3://photos/in/"], "s3://photos/in/", "is the folder of the inputs"),
        (["s3://photos/in/a.png"], "s3://photos/in/a.png", "is the input itself"),
        (["s3://photos/in/b.png"], "b.png", "nothing is there"),
        (["s3://photos/none/"], "out", "nothing is there"),
        (["s3://photos/in/a.png"], "s3://photos/out/a.gif", "unknown suffix"),
        (["s3://photos/in/a.png"], "s3://photos/out", "unknown suffix ''"),
        (["s3://photos/in/a.png"], "https://host/a.png", "nothing can be written to a web server"),
        (["s3://photos/in/a.png"], "ftp://host/a.png", "ftp is not known"),
    ],
)
def test_wrong_calls(bucket, inputs, output, words):
    upload(bucket, "in/a.png")
    fails(lambda: find_jobs(inputs, output), CallError, words)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def plain_server(folder):
    """Python's own web server over a folder: its address."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_photos_of_a_plain_web_server():
    make("web/a.png", "web/b/a.png")
    with plain_server("web") as host:
        inputs = [f"{host}/a.png?v=1", f"{host}/b/a.png", f"{host}/none.png"]
        assert restore(inputs, "out/") == {"a.png": "ok", "none.png": "failed"}
        assert restore.told["none.png"].error.endswith("HTTP 404 File not found")
        assert sorted(path.name for path in Path("out").glob("*.png")) == ["a.png", "a.png.png"]
        assert restore(inputs[:2], "out/") == {"a.png": "skipped"}
        jobs, _ = find_jobs([f"{host}/a.png"], "b.png")
        Batch(Doubler(), Size(2)).run(jobs, lambda record: None, lambda *_: None)
    with PIL.Image.open("b.png") as image:
        assert image.size == (32, 32)
