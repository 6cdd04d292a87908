"""Fetching sets from a server on this machine, which breaks off and lies where a test says so."""

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from failing import fails
from servers import answer, hang_up, serving

from mambair_cli.bench.quality import fetch_sets
from mambair_cli.bench.quality.fetch_sets import fetch_set
from mambair_cli.bench.quality.sets import Archive, DataSet, Files, digest_of, find_set, hash_of
from mambair_cli.errors import CallError, DownloadError
from mambair_cli.images.folders import list_images, read_rgb
from mambair_cli.images.io import Image, write_image
from mambair_cli.models import download

RNG = np.random.default_rng(0)
PIXELS = {name: RNG.integers(0, 256, (12, 14, 3), dtype=np.uint8) for name in ("a", "b")}
ROW = DataSet("Toy", "upscale", 2, "free", "toys.example", digest_of(map(hash_of, PIXELS.values())))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache, empty; nobody waits between attempts."""
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "data"


@pytest.fixture
def images(tmp_path):
    """The bytes of the files by name."""
    (tmp_path / "made").mkdir()
    for name, pixels in PIXELS.items():
        write_image(tmp_path / "made" / f"{name}.png", Image(pixels))
    return {path.stem: path.read_bytes() for path in (tmp_path / "made").iterdir()}


def packed(files, kind="gz"):
    """A tar archive of contents by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def shop(images):
    """A server that gives the archive of the set."""
    with serving(packed({f"Toy_HR/{name}.png": data for name, data in images.items()})) as server:
        yield server


def toy(server, *more, **changes):
    return replace(ROW, addresses=(Archive(server.url + "/toy.tar.gz", **changes), *more))


def assert_fetched(folder, cache):
    assert folder == cache / "Toy"
    found = {path.stem: read_rgb(path) for path in list_images(folder)}
    assert found.keys() == PIXELS.keys()
    assert all(np.array_equal(found[name], PIXELS[name]) for name in PIXELS)
    assert not (cache / "partial" / "Toy").exists()


def test_a_set_is_fetched_once_and_told_first(shop, cache):
    said, shares = [], []
    row = toy(shop)
    assert_fetched(fetch_set(row, said.append, lambda share, label: shares.append(share)), cache)
    assert said == [f"fetching Toy from {shop.url}/toy.tar.gz (0 MB; licence: free)"]
    assert shares[-1] == 1
    fetch_set(row)
    assert len(shop.requests) == 1


def test_its_place_is_where_sets_are_looked_for(shop, cache, monkeypatch):
    from mambair_cli.bench.quality import sets

    monkeypatch.setattr(sets, "SETS", (toy(shop),))
    assert find_set("toy", None, fetch_set)[1] == cache / "Toy"
    assert find_set("toy")[1] == cache / "Toy"
    assert len(shop.requests) == 1


def test_a_broken_connection_is_resumed(shop, cache):
    shop.script += [lambda handler: shop.serve(handler, break_after=50), hang_up]
    assert_fetched(fetch_set(toy(shop)), cache)
    assert [request.get("Range") for request in shop.requests] == [None, "bytes=50-", "bytes=50-"]


def test_the_next_run_goes_on_where_one_was_cut_off(shop, cache, monkeypatch):
    monkeypatch.setattr(download, "FAILURES", 1)
    shop.script += [lambda handler: shop.serve(handler, break_after=50)]
    fails(lambda: fetch_set(toy(shop)), DownloadError, "Toy could not be fetched", "toys.example")
    assert not (cache / "Toy").exists()
    assert_fetched(fetch_set(toy(shop)), cache)
    assert shop.requests[-1]["Range"] == "bytes=50-"


def test_addresses_are_tried_in_turn(shop, images, cache):
    """One is gone, one holds another set, one is no archive; the last gives image by image."""
    other = packed({"x/a.png": images["a"], "x/b.png": images["a"]})
    shop.script += [answer(404), answer(200, other), answer(200, b"no archive")]
    shop.script += [answer(200, images["a"]), answer(200, images["b"])]
    said = []
    names = ("a", "b")
    row = replace(
        ROW,
        addresses=(
            *(Archive(f"{shop.url}/{i}.tar.gz") for i in range(3)),
            Files(shop.url + "/{}.png", names),
        ),
    )
    assert_fetched(fetch_set(row, said.append), cache)
    told = " | ".join(said)
    for words in ("HTTP 404", "not the Toy that is known", "cannot be unpacked", "2 images"):
        assert words in told
    paths = [request["path"] for request in shop.requests]
    assert paths[-2:] == ["/file/a.png", "/file/b.png"]


def test_single_images_are_not_fetched_twice(shop, images, cache):
    shop.script += [answer(200, images["a"]), answer(404), answer(200, images["b"])]
    row = replace(ROW, addresses=(Files(shop.url + "/{}_HR.png", ("a", "b")),))
    fails(lambda: fetch_set(row), DownloadError, "404", "b_HR.png", "toys.example")
    assert_fetched(fetch_set(row), cache)
    assert [request["path"] for request in shop.requests] == [
        "/file/a_HR.png", "/file/b_HR.png", "/file/b_HR.png"
    ]  # fmt: skip


def test_only_the_images_that_belong_to_it_are_unpacked(shop, images, cache):
    shop.content = packed(
        {
            "bench/Toy/HR/a.png": images["a"],
            "bench/Toy/HR/b_SRF_4_HR.png": images["b"],
            "bench/Toy/HR/._b.png": b"of macOS",
            "bench/Toy/LR/a.png": b"a small one",
            "bench/Other/HR/c.png": images["a"],
            "bench/Toy/HR/readme.txt": b"text",
        },
        kind="",
    )
    assert_fetched(fetch_set(toy(shop, inside="*/Toy/HR/*")), cache)


@pytest.mark.parametrize("pack", [packed, zipped])
def test_nothing_is_written_outside(shop, images, cache, tmp_path, pack):
    shop.content = pack({"../../../a.png": images["a"], f"{tmp_path}/b.png": images["b"]})
    assert_fetched(fetch_set(toy(shop)), cache)
    assert not list(tmp_path.glob("*.png"))
    assert not list(cache.parent.glob("*.png"))


def test_links_are_not_followed(shop, images, cache, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(images["b"])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = len(images["a"])
        archive.addfile(member, io.BytesIO(images["a"]))
        for kind, name in ((tarfile.SYMTYPE, "b.png"), (tarfile.LNKTYPE, "c.png")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, str(secret)
            archive.addfile(link)
    shop.content = buffer.getvalue()
    fails(lambda: fetch_set(toy(shop)), DownloadError, "not the Toy that is known")
    assert not (cache / "Toy").exists()


def test_archives_are_bounded(shop, images, cache, monkeypatch):
    many = {f"{name}.png": images["a"] for name in "abc"}
    shop.content = packed(many)
    fails(lambda: fetch_set(toy(shop)), DownloadError, "more than 2 images")
    shop.content = packed({"x/a.png": images["a"], "y/a.png": images["b"]})
    fails(lambda: fetch_set(toy(shop)), DownloadError, "more than 2 images")
    for pack in (packed, zipped):
        shop.content = pack({"a.png": bytes(5000), "b.png": images["b"]})
        monkeypatch.setattr(fetch_sets, "LARGEST_IMAGE", 4000)
        fails(lambda: fetch_set(toy(shop)), DownloadError, "more than 4,000 bytes")
        monkeypatch.setattr(fetch_sets, "LARGEST_CONTENT", 3000)
        fails(lambda: fetch_set(toy(shop)), DownloadError, "more than 3,000 bytes")
        monkeypatch.setattr(fetch_sets, "LARGEST_CONTENT", 2**30)
    monkeypatch.setattr(fetch_sets, "LARGEST_ARCHIVE", 100)
    fails(lambda: fetch_set(toy(shop)), DownloadError, "at most 100 are expected")
    assert not (cache / "Toy").exists()


def test_a_changed_archive_is_refused_and_not_kept(shop, cache):
    right = hashlib.md5(shop.content).hexdigest()
    fails(lambda: fetch_set(toy(shop, md5="0" * 32)), DownloadError, "has changed")
    assert_fetched(fetch_set(toy(shop, md5=right)), cache)


@pytest.mark.parametrize("cut", [10, 100, 500])
def test_a_damaged_archive_is_no_crash(shop, cache, cut):
    shop.content = shop.content[:cut]
    fails(lambda: fetch_set(toy(shop)), DownloadError, "Toy could not be fetched", "toys.example")
    assert not (cache / "Toy").exists()


def test_offline_nothing_is_fetched(shop, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fails(lambda: fetch_set(toy(shop)), DownloadError, "must not be used", "toys.example")
    assert shop.requests == []


def test_what_only_a_person_can_get():
    fails(lambda: fetch_set(ROW), CallError, "cannot be fetched", "toys.example", "Toy/HR/*.png")


def test_a_cache_that_cannot_be_written(shop, cache):
    cache.parent.mkdir()
    cache.write_text("a file")
    fails(lambda: fetch_set(toy(shop)), DownloadError, "cannot be written", "MAMBAIR_HOME")
