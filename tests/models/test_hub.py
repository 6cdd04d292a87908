"""Against a stand-in for Hugging Face on this machine, by the real huggingface-hub."""

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from failing import fails
from networks import STATE, saved

from mambair_cli.errors import CallError, DownloadError
from mambair_cli.models.fetch import find_checkpoint
from mambair_cli.models.hub import hub_file, is_on_hub
from mambair_cli.models.weights import bundled_folder

pytest.importorskip("huggingface_hub")
COMMIT = "0" * 40
CONTENT = saved({"params": STATE})
REPOSITORIES = {
    "some/net": ["README.md", "net.pth"],
    "some/two": ["a.pth", "folder/b.pth"],
    "some/both": ["a.pth", "b.safetensors"],
    "some/empty": ["README.md"],
}


class Hub(BaseHTTPRequestHandler):
    """As much of the site as huggingface-hub asks for one file."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        for name, files in REPOSITORIES.items():
            path = self.path.split("?")[0]
            if path.startswith(f"/api/models/{name}"):
                facts = {"id": name, "sha": COMMIT}
                if "/tree/" in path:
                    facts = [{"type": "file", "path": f, "size": 9, "oid": COMMIT} for f in files]
                else:
                    facts |= {"siblings": [{"rfilename": file} for file in files]}
                return self.answer(200, json.dumps(facts).encode(), body)
            for file in files:
                if path.endswith(
                    (f"/{name}/resolve/main/{file}", f"/{name}/resolve/{COMMIT}/{file}")
                ):
                    return self.answer(200, CONTENT, body)
        return self.answer(404, b"{}", body, X_Error_Code="EntryNotFound")

    def answer(self, status, content, body, **headers):
        self.send_response(status)
        headers |= {"Content_Length": len(content), "ETag": '"1"', "X_Repo_Commit": COMMIT}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """huggingface-hub asks this machine, and its cache is empty."""
    from huggingface_hub import constants

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as http:
        thread = Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{http.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_ENDPOINT", address)
        import huggingface_hub.hf_api

        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
        yield http
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["hf:some/net", "hf:some/net/net.pth", "hf:some/two/folder/b.pth"])
def test_a_file_is_fetched_and_then_here(hub, name, monkeypatch):
    path = find_checkpoint(name)
    assert path.read_bytes() == CONTENT
    assert path.name == name.split("/")[-1] or path.name == "net.pth"
    monkeypatch.setattr(Hub, "do_GET", lambda self, body=True: self.answer(500, b"", body))
    if name.count("/") > 1:
        assert hub_file(name) == path


def test_safetensors_come_first(hub):
    assert hub_file("hf:some/both").name == "b.safetensors"


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("hf:some/two", CallError, ["several checkpoints", "a.pth, folder/b.pth"]),
        ("hf:some/empty", CallError, ["no checkpoint"]),
        ("hf:some", CallError, ["hf:OWNER/REPO"]),
        ("hf:", CallError, ["hf:OWNER/REPO"]),
        ("hf:some/net/other.pth", DownloadError, ["hf:some/net/other.pth cannot be fetched"]),
        ("hf:no/body", DownloadError, ["hf:no/body cannot be fetched"]),
        ("hf:../../etc/passwd", DownloadError, ["cannot be fetched"]),
    ],
)
def test_what_is_not_there(hub, name, error, words):
    fails(lambda: hub_file(name), error, *words)


def test_without_the_package():
    program = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from mambair_cli.models.hub import hub_file\n"
        "try: hub_file('hf:some/net')\nexcept Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("CallError hf:some/net needs the package huggingface-hub")
    assert "pip install 'mambair[hub]'" in done.stdout


def test_what_means_the_hub():
    assert is_on_hub("hf:a/b")
    assert not is_on_hub("tiny-x4")


@pytest.mark.parametrize("path", sorted(bundled_folder().glob("*.md")), ids=lambda p: p.stem)
def test_cards_have_what_the_hub_reads(path):
    from huggingface_hub import ModelCard

    card = ModelCard.load(path)
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "mambair"
    assert card.data.pipeline_tag == "image-to-image"
    assert card.data.tags[:2] == ["mambair", "image-restoration"]
    assert card.text.strip().startswith(f"# {path.stem}\n")
