"""`mambair models`: which models there are, what each is for, and which of them are here."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import CallError
from ..models.cache import Record, cached_file, list_records, models_folder
from ..models.catalog import (
    BASELINES,
    MODELS,
    TASKS,
    Model,
    Score,
    Task,
    model_named,
    published_scores,
)
from .terminal import Json, Offline, print_json, print_table, progress_bar, say

app = typer.Typer(
    help="Which models there are, what each is for, and which are here.", no_args_is_help=True
)
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="See mambair models list.", show_default=False)
]


@app.command("list")
def models_list(
    task: Annotated[
        str | None, typer.Option(help=f"Only those for one of {', '.join(TASKS)}.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As the tables of README.")] = False,
    as_json: Json = False,
) -> None:
    """List the models that can be used by name, bundled, fetched or to be fetched."""
    if task and task not in TASKS:
        raise CallError(f"no task is called {task!r}; there are {', '.join(TASKS)}")
    models = [model for model in MODELS if task in (None, model.task)]
    own = [
        r
        for r in list_records()
        if model_named(r.name) is None and (task is None or task in _tasks(r))
    ]
    if as_json:
        print_json(
            [_facts(model) for model in models]
            + [asdict(record) | {"state": "here"} for record in own]
        )
    elif markdown:
        print(
            "\n\n".join("\n".join(_markdown(TASKS[name])) for name in TASKS if task in (None, name))
        )
    else:
        rows = [
            (
                m.name,
                m.task,
                _step(m),
                _millions(m.parameters),
                m.degradation,
                " ".join(map(_cell, m.scores[:1])),
                _state(m),
            )
            for m in models
        ]
        rows += [
            (
                r.name,
                " or ".join(_tasks(r)),
                f"x{r.scale}",
                _millions(r.parameters),
                f"imported from {r.source}",
                "",
                "here",
            )
            for r in own
        ]
        print_table(("name", "task", "scale", "params", "for", "score", "file"), rows)


@app.command("info")
def models_info(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", show_default=False)],
    as_json: Json = False,
) -> None:
    """Say all that is known of a model, or what a checkpoint file holds."""
    row, path = model_named(name), _file_of(name)
    facts: dict[str, Any] = {}
    if path or not row:
        from ..models.fetch import named_file
        from ..models.weights import describe

        facts = describe(path or named_file(name))
    if row:
        facts |= {**_facts(row), "file": str(path) if path else None}
    if as_json:
        print_json(facts)
        return
    if row:
        facts["scores"] = [_cell(score) for score in row.scores]
    print_table(
        ("", ""),
        [(key, _text(value)) for key, value in facts.items() if value not in (None, [], {}, ())],
    )


@app.command("pull")
def models_pull(name: Name, offline: Offline = False) -> None:
    """Fetch a model's file into the cache, unless it is here; a broken download goes on where it stopped."""
    row = model_named(name)
    path = fetch(row) if row else _file_of(name)
    if path is None:
        from ..models.fetch import no_model

        raise CallError(no_model(name))
    print(path)


@app.command("verify")
def models_verify(as_json: Json = False) -> None:
    """Check the files of all models that are here: their hashes, and that they can be loaded."""
    from ..models.fetch import verify

    found = [
        {"name": name, "file": str(path), "problem": problem} for name, path, problem in verify()
    ]
    if as_json:
        print_json(found)
    else:
        print_table(
            ("name", "file", ""), [(f["name"], f["file"], f["problem"] or "sound") for f in found]
        )
    if any(f["problem"] for f in found):
        raise typer.Exit(1)


@app.command("path")
def models_path(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", show_default=False)] = None,
) -> None:
    """Say where the fetched models lie, or the file of one."""
    path = _file_of(name) if name else models_folder()
    if name and path is None:
        from ..models.fetch import no_model

        row = model_named(name)
        how = (
            f"mambair models pull {name} fetches it"
            if row and row.urls
            else "see mambair models import --help"
        )
        raise CallError(f"{name} is not here; {how}" if row else no_model(name))
    print(path)


@app.command("convert")
def models_convert(
    source: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", show_default=False)],
) -> None:
    """Write a checkpoint as safetensors: the same tensors, with the configuration beside them."""
    from ..models.weights import convert

    convert(source, target)
    print(target)


@app.command("import")
def models_import(
    source: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    name: Annotated[str, typer.Option(help="A new one, or that of a model whose file this is.")],
) -> None:
    """Copy a checkpoint into the cache, so that `-m NAME` takes it."""
    from ..models.fetch import import_file

    print(import_file(source, name, tell=say))


@app.command("remove")
def models_remove(name: Name) -> None:
    """Delete a fetched or imported file."""
    from ..models.fetch import remove

    print(f"removed {remove(name)}")


def fetch(row: Model, quiet: bool = False) -> Path:
    """`checkpoints.pull` with a progress bar."""
    from ..models.fetch import pull

    with progress_bar(quiet) as show:
        return pull(
            row, lambda done, total: show(done / total if total else 0, f"fetching {row.name}"), say
        )


def _file_of(name: str) -> Path | None:
    """Of a bundled or cached model."""
    row = model_named(name)
    if row is None or row.file is None:
        return cached_file(name)
    from ..models.weights import bundled_folder

    return bundled_folder() / row.file


def _facts(model: Model) -> dict[str, Any]:
    facts = {
        name: value
        for name, value in asdict(model).items()
        if name not in ("measured", "published")
    }
    known = {"bundled": model.bundled, "verified": model.verified, "state": _state(model)}
    return facts | known | {"scores": [asdict(score) for score in model.scores]}


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.2f}M"


def _text(value: Any) -> str:
    """Of a fact, for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _tasks(record: Record) -> list[str]:
    """What an imported model may be for."""
    return (
        [record.task]
        if record.task
        else [t.name for t in TASKS.values() if (t.scale > 1) == (record.scale > 1)]
    )


def _step(model: Model) -> str:
    """Its scale, or the level that it is for."""
    if not model.levels:
        return f"x{model.scale}"
    return f"{TASKS[model.task].level} {'-'.join(map(str, dict.fromkeys(model.levels)))}"


def _cell(score: Score, name: bool = True) -> str:
    ssim = f"{score.ssim:.4f}".removesuffix("0") if score.ssim else ""  # some give three digits
    figures = f"{score.psnr:.2f}{' / ' if ssim else ''}{ssim}"
    return f"{score.dataset} {figures} ({score.channel})" if name else figures


def _state(model: Model) -> str:
    if model.bundled or cached_file(model.name):
        return "bundled" if model.bundled else "here"
    return "to fetch" if model.urls else "no address"


def _markdown(task: Task) -> Iterator[str]:
    """The table of a task's models, with what the bundled ones reach and the others are said to reach."""
    models = [model for model in MODELS if model.task == task.name]
    table, method, setting = BASELINES.get(task.name, ("", "", "{}"))
    steps = dict.fromkeys(
        (_step(m), (m.levels or [m.scale])[0]) for m in models if len({*(m.levels or [0])}) == 1
    )
    rows: list[tuple[str, str, str, str, tuple[Score, ...], str, str]] = [
        (f"({method})", step, "", "", scores, "", "")
        for step, number in sorted(steps, key=lambda pair: pair[1])
        if (scores := published_scores(table, setting.format(number), method))
    ]
    for m in models:
        file = "bundled" if m.bundled else "to fetch" if m.urls else "no address"
        size = _millions(m.parameters)
        rows.append((f"`{m.name}`", _step(m), size, m.degradation, m.scores, m.licence, file))
    sets = list(dict.fromkeys(score.dataset for row in rows for score in row[4]))
    channels = ", ".join(dict.fromkeys(score.channel for row in rows for score in row[4]))
    yield f"`mambair {task.name}` (PSNR in dB and SSIM; {channels})"
    yield ""
    yield f"| model | {task.level or 'scale'} | parameters | for | {' | '.join([*sets, 'licence', 'file'])} |"
    yield "|---" * (6 + len(sets)) + "|"
    for name, step, size, purpose, scores, licence, file in rows:
        cells = {score.dataset: _cell(score, name=False) for score in scores}
        figures = [cells.get(dataset, "") for dataset in sets]
        yield f"| {' | '.join([name, step, size, purpose, *figures, licence, file])} |"
