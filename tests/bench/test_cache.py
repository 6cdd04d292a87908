import sqlite3
import threading

import pytest
from failing import fails

from mambair_cli.bench.cache import Cache, code_digest, key_of
from mambair_cli.errors import CacheError


def test_a_key_is_of_all_settings_in_any_order():
    assert key_of(a=1, b=[2, "x"]) == key_of(b=[2, "x"], a=1)
    others = [
        key_of(a=1, b=[2, "y"]),
        key_of(a=1),
        key_of(a="1", b=[2, "x"]),
        key_of(a=1, b={"2": "x"}),
    ]
    assert len({key_of(a=1, b=[2, "x"]), *others}) == 5


def test_the_digest_of_code_is_of_all_its_files(tmp_path):
    (tmp_path / "deeper").mkdir()
    digests = [code_digest(), code_digest(tmp_path)]
    for name, text in (("a.py", "1"), ("a.py", "2"), ("deeper/b.py", "1")):
        (tmp_path / name).write_text(text)
        digests.append(code_digest(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    digests.append(code_digest(tmp_path))
    assert len(set(digests)) == 6
    (tmp_path / "deeper" / "b.pyc").write_text("compiled")
    assert code_digest(tmp_path) == digests[-1]
    assert code_digest() == digests[0]


def test_rows_outlive_the_process_and_can_be_replaced(tmp_path):
    path = tmp_path / "deeper" / "rows.sqlite"
    cache = Cache(path)
    assert cache.get("a") is None
    cache.put("a", {"psnr": 1.5, "name": "é"})
    cache.put("b", {"psnr": float("inf")})
    other = Cache(path)  # while the first is open
    assert other.get("a") == {"psnr": 1.5, "name": "é"}
    other.put("a", {"psnr": 2})
    assert cache.get("a") == {"psnr": 2}
    cache.close()
    other.close()
    cache = Cache(path)
    assert (cache.get("a"), cache.get("b")["psnr"]) == ({"psnr": 2}, float("inf"))
    cache.close()


def test_rows_come_from_any_thread(tmp_path):
    cache = Cache(tmp_path / "rows.sqlite")
    threads = [threading.Thread(target=cache.put, args=(str(i), i)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [cache.get(str(i)) for i in range(20)] == list(range(20))
    cache.close()


def test_without_a_file_rows_are_kept_for_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = Cache(None)
    cache.put("a", 1)
    assert cache.get("a") == 1
    cache.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_cache_is_an_error(tmp_path):
    path = tmp_path / "rows.sqlite"
    path.write_text("this is no data base, but long enough to be looked at " * 50)
    fails(lambda: Cache(path), CacheError, path, "delete it")
    (tmp_path / "file").write_text("")
    fails(lambda: Cache(tmp_path / "file" / "rows.sqlite"), CacheError, tmp_path / "file")
    fails(lambda: Cache(tmp_path), CacheError, tmp_path)


def test_a_cache_that_breaks_during_a_run_is_an_error(tmp_path):
    cache = Cache(tmp_path / "rows.sqlite")
    with sqlite3.connect(tmp_path / "rows.sqlite") as other:
        other.execute("drop table rows")
    other.close()
    fails(lambda: cache.put("a", 1), CacheError, "delete it")
    with pytest.raises(CacheError):
        cache.get("a")
    cache.close()
