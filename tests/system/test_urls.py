from pathlib import Path

import pytest
from buckets import SECRET, broken, busy
from failing import fails

from mambair_cli.errors import CallError, DownloadError, UploadError
from mambair_cli.system import urls
from mambair_cli.system.urls import (
    Url,
    is_url,
    locate,
    objects_below,
    read_object,
    without_secrets,
    write_object,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    pytest.importorskip("fsspec")
    monkeypatch.setattr(urls, "PAUSE", 0.01)


def test_what_is_a_url():
    assert all(map(is_url, ["s3://b/k", "gs://b/", "hf://u/r/f", "http://h/f", "https://h/f"]))
    assert not any(map(is_url, ["photo.png", "C:\\photo.png", "a/b://c", "-", "", "://x"]))
    fails(
        lambda: is_url("ftp://me:word@host/a.png"), CallError, "ftp://host/a.png: ftp is not known"
    )


@pytest.mark.parametrize(
    ("address", "name", "suffix"),
    [
        ("s3://bucket/in/a.b.png", "a.b.png", ".png"),
        ("s3://bucket/in/what?.png", "what?.png", ".png"),
        ("s3://bucket/in/", "in", ""),
        ("https://host/in/a.jpg?signature=x/y.gif#z", "a.jpg", ".jpg"),
    ],
)
def test_names(address, name, suffix):
    assert (Url(address).name, Url(address).suffix) == (name, suffix)


def test_paths_below():
    folder = Url("s3://bucket/out/")
    assert folder / "a/b.png" == Url("s3://bucket/out/a/b.png")
    assert (folder / "a/b.png").below(folder) == "a/b.png"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:word@host/a.png: no", "https://host/a.png: no"),
        ("https://host/a.png?X-Amz-Signature=abc&b=c, url", "https://host/a.png, url"),
        ("url='http://u:p@h:1/x?token=t'", "url='http://h:1/x'"),
        (f"the key {SECRET} is wrong", "the key <AWS_SECRET_ACCESS_KEY> is wrong"),
        ("mail me@host", "mail me@host"),
        ("s3://bucket/what?.png", "s3://bucket/what?.png"),
    ],
)
def test_nothing_shows_a_secret(monkeypatch, text, shown):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert without_secrets(text) == shown
    assert str(Url(text)) == shown


def test_a_web_server_is_not_asked_what_it_has():
    url = locate("https://host.invalid/a.png?signature=x")
    assert (url.is_folder, url.bytes, url.version) == (False, None, "https://host.invalid/a.png")
    message = fails(lambda: locate(f"https://me:{SECRET}@host/a.png"), CallError, "passwords")
    assert SECRET not in message


# A bucket


def test_objects_are_listed_in_pages(bucket):
    for i in range(7):
        bucket.put(f"in/{i % 2}/{i}.png", b"x" * i)
    bucket.put("in/0/", b"")
    bucket.put("other/in/8.png", b"x")
    bucket.put("int.png", b"x")
    found = list(objects_below(Url("s3://photos/in/", is_folder=True)))
    assert {url.address: url.bytes for url in found} == {
        f"s3://photos/in/{i % 2}/{i}.png": i for i in range(7)
    }
    assert all(len(url.version) >= 32 for url in found)
    assert len(list(objects_below(Url("s3://photos", is_folder=True)))) == 9
    assert list(objects_below(Url("s3://photos/none/", is_folder=True))) == []


def test_more_than_a_page(bucket):
    page = {"IsTruncated": True, "NextContinuationToken": "more"}

    asked = []

    class Files:
        def call_s3(self, method, **options):
            asked.append(options)
            number = len(asked)
            entries = [{"Key": f"in/{number}-{i}.png", "Size": 1, "ETag": '"e"'} for i in range(3)]
            return {"Contents": entries, **(page if number < 4 else {})}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(urls, "_files", lambda scheme: Files())
        assert len(list(objects_below(Url("s3://photos/in/", is_folder=True)))) == 12
    assert [options.get("ContinuationToken") for options in asked] == [None, *["more"] * 3]


def test_what_lies_at_an_address(bucket):
    bucket.put("in/a.png", b"abc")
    assert locate("s3://photos/in/a.png").bytes == 3
    assert locate("s3://photos/in/").is_folder
    assert locate("s3://photos/in").is_folder
    assert locate("s3://photos").is_folder
    fails(lambda: locate("s3://photos/in/b.png"), CallError, "b.png: nothing is there")
    fails(lambda: locate("s3://no-such-bucket/b.png"), CallError, "nothing is there")


def test_an_object_goes_there_and_back(bucket, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"0123456789" * 1000)
    write_object(path, Url("s3://photos/out/a.bin"))
    assert bucket.get("out/a.bin") == path.read_bytes()
    assert read_object(locate("s3://photos/out/a.bin"), 10_000) == path.read_bytes()
    fails(lambda: read_object(locate("s3://photos/out/a.bin"), 9_999), DownloadError, "`max_bytes`")


def test_a_bucket_that_is_busy(bucket, tmp_path):
    bucket.put("a.bin", b"abc")
    url = locate("s3://photos/a.bin")
    for act in (busy, broken):
        bucket.script = [(lambda method, path: method == "GET" and "a.bin" in path, act)] * 2
        assert read_object(url, 10) == b"abc"
        assert bucket.script == []
    path = Path(tmp_path, "b")
    path.write_bytes(b"content")
    for act in (busy, broken):
        bucket.script = [(lambda method, path: method == "PUT", act)] * 2
        write_object(path, Url("s3://photos/b"))
        assert bucket.script == []
        assert bucket.get("b") == b"content"


def test_an_upload_that_never_comes_through_leaves_nothing(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(urls, "ATTEMPTS", 2)
    path = tmp_path / "b"
    path.write_bytes(b"content")
    bucket.script = [(lambda method, path: method == "PUT", busy)] * 99
    message = fails(lambda: write_object(path, Url("s3://photos/b")), UploadError, "s3://photos/b")
    assert SECRET not in message
    bucket.script = []
    assert bucket.names() == []
    fails(lambda: write_object(path, Url("s3://no-such-bucket/b")), UploadError, "no-such-bucket")


def test_without_credentials(bucket, new_connections, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    path = tmp_path / "b"
    path.write_bytes(b"content")
    fails(lambda: write_object(path, Url("s3://photos/b")), UploadError, "there are no credentials")


def test_what_is_not_installed(bucket, new_connections, monkeypatch):
    import fsspec

    def missing(scheme, **options):
        raise ImportError("gcsfs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    fails(lambda: locate("gs://bucket/a.png"), CallError, "pip install 'mambair[cloud]'")
