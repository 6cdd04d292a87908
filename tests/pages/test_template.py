import base64
import json
import re

from mambair_cli.pages.template import data_address, fill


def test_a_page_holds_its_data_and_the_viewer(tmp_path):
    template = tmp_path / "page.html"
    template.write_text("<style>@STYLE@</style><script>@SCRIPT@</script><p id=data>@DATA@</p>")
    data = {"title": "</script><b>@STYLE@ é", "numbers": [1, 2.5, None]}
    page = fill(template, data)
    found = re.search("<p id=data>(.*)</p>", page)[1]
    assert "<" not in found
    assert json.loads(found) == data
    assert "function viewer(" in page
    assert ".stage" in page
    assert page.count("@STYLE@") == 1


def test_an_address_is_the_image():
    head, body = data_address(b"abc", "png").split(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body) == b"abc"
