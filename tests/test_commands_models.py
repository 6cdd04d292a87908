import json
from dataclasses import asdict

from calls import check_bad, each_call, works

from mambair_cli.registry import MODELS


def test_models_list(call):
    assert json.loads(works(call("models", "list", "--json"))) == [asdict(model) for model in MODELS]
    header, *lines = works(call("models", "list")).splitlines()
    assert header.split() == ["name", "task", "scale", "parameters", "for", "score"]
    for model, line in zip(MODELS, lines, strict=True):
        assert line.split()[:4] == [model.name, model.task, f"x{model.scale}", f"{model.parameters:,}"]


@each_call(("models  nonsense", 2, "'nonsense'", "mambair models --help"))
def test_bad_calls(call, bad, line, code, words):
    check_bad(call, bad, line.split("  "), code, words)
