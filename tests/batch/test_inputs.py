import pytest
from failing import fails
from servers import answer, hang_up, serving

from mambair_cli.batch.inputs import read_content
from mambair_cli.errors import DownloadError
from mambair_cli.models import download
from mambair_cli.system.urls import Url

SECRET = "a-secret-that-nobody-may-see"


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    with serving(bytes(range(256)) * 40) as server:
        yield server


def test_a_file_of_a_web_server(web):
    assert read_content(Url(web.url), 10**6) == web.content
    assert len(web.requests) == 1


def test_a_server_that_is_busy_or_breaks_off_is_asked_again(web):
    web.script = [answer(503), hang_up, lambda handler: web.serve(handler, break_after=5000)]
    assert read_content(Url(web.url), 10**6) == web.content
    assert len(web.requests) == 4


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_signature_is_not_told(web, status):
    web.script = [answer(status)] * 20
    address = f"{web.url}?signature={SECRET}"
    message = fails(lambda: read_content(Url(address), 99), DownloadError, web.url, str(status))
    assert SECRET not in message


@pytest.mark.parametrize("script", [[], [answer(200, bytes(5000))]], ids=["told", "untold"])
def test_a_file_that_is_too_long(web, script):
    web.script = script
    fails(lambda: read_content(Url(web.url), 4999), DownloadError, "4,999")
