"""`mambair models`: which models there are, what each is for, and which of them are here."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import CallError
from ..models.cache import Record, cached_file, list_records, models_folder
from ..models.catalog import Model, list_models, model_named
from ..models.choice import better_model, gain, is_here
from ..models.published import BASELINES, Score, published_scores
from ..models.tasks import TASKS, Task
from .help import Command, Group
from .terminal import Json, Offline, choices, print_json, print_table, progress_bar, say, show

app = typer.Typer(
    cls=Group,
    help="Which models there are, what each is for, and which are on this machine.",
    no_args_is_help=True,
)
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="See mambair models list.", show_default=False)
]


TaskNames = choices("TaskNames", TASKS)


@app.command("list", cls=Command)
def models_list(
    task: Annotated[
        TaskNames | None,  # type: ignore[valid-type]
        typer.Option(help="Only the models of one task."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All models, with sizes and scores.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables of docs/models.md.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the models that are here, and better ones that can be fetched."""
    models = [model for model in list_models() if task in (None, model.task)]
    imported = [record for record in list_records() if model_named(record.name) is None]
    imported = [record for record in imported if task is None or task in _tasks(record)]
    if as_json:
        records = [asdict(record) | {"state": "here"} for record in imported]
        print_json([_facts(model) for model in models] + records)
    elif markdown:
        tables = [_markdown(TASKS[name]) for name in TASKS if task in (None, name)]
        print("\n\n".join("\n".join(table) for table in tables))
    elif everything:
        rows = [*map(_model_row, models), *map(_record_row, imported)]
        print_table(("name", "task", "scale", "params", "for", "score", "file"), rows)
    else:
        _print_recommended(models, imported)


@app.command("info", cls=Command)
def models_info(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show everything known about a model, or what a checkpoint file holds."""
    model, path = model_named(name), _file_of(name)
    facts: dict[str, Any] = {}
    if path or not model:
        from ..models.fetch import named_file
        from ..models.recognise import describe

        facts = describe(path or named_file(name))
    if model:
        facts |= {**_facts(model), "file": str(path) if path else None}
    if as_json:
        print_json(facts)
        return
    if model:
        facts["scores"] = [_cell(score) for score in model.scores]
    known = {key: value for key, value in facts.items() if value not in (None, [], {}, ())}
    print_table(("", ""), [(key, _text(value)) for key, value in known.items()])


@app.command("pull", cls=Command)
def models_pull(name: Name, offline: Offline = False) -> None:
    """Download a model, unless it is here; an interrupted download goes on where it stopped."""
    model = model_named(name)
    path = fetch(model) if model else _file_of(name)
    if path is None:
        from ..models.fetch import no_model

        raise CallError(no_model(name))
    show(path)


@app.command("verify", cls=Command)
def models_verify(as_json: Json = False) -> None:
    """Check the files of all models that are here: their hashes, and whether they load."""
    from ..models.fetch import verify

    found = list(verify())
    if as_json:
        rows = ({"name": name, "file": str(path), "problem": why} for name, path, why in found)
        print_json(list(rows))
    else:
        table = [(name, str(path), why or "sound") for name, path, why in found]
        print_table(("name", "file", ""), table)
    if any(why for _, _, why in found):
        raise typer.Exit(1)


@app.command("path", cls=Command)
def models_path(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", show_default=False)] = None,
) -> None:
    """Show the folder of the fetched models, or the file of one."""
    path = _file_of(name) if name else models_folder()
    if name and path is None:
        from ..models.fetch import no_model

        model = model_named(name)
        if model is None:
            raise CallError(no_model(name))
        pull = f"mambair models pull {name} fetches it"
        how = pull if model.urls else "see mambair models import --help"
        raise CallError(f"{name} is not here; {how}")
    show(path)


@app.command("convert", cls=Command)
def models_convert(
    source: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", show_default=False)],
) -> None:
    """Convert a checkpoint to safetensors: the same tensors, with the configuration."""
    from ..models.recognise import convert

    convert(source, target)
    show(target)


@app.command("import", cls=Command)
def models_import(
    source: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    name: Annotated[str, typer.Option(help="A new name, or that of the model whose file this is.")],
) -> None:
    """Copy a checkpoint into the cache, so that -m NAME finds it."""
    from ..models.fetch import import_file

    show(import_file(source, name, tell=say))


@app.command("remove", cls=Command)
def models_remove(name: Name) -> None:
    """Delete a fetched or imported file."""
    from ..models.fetch import remove

    show(f"removed {remove(name)}")


def fetch(model: Model, quiet: bool = False) -> Path:
    """The file of a model, fetched with a progress bar unless it is here. Raises as `pull`."""
    from ..models.fetch import pull

    with progress_bar(quiet) as show:

        def progress(done: int, total: int | None) -> None:
            show(done / total if total else 0, f"fetching {model.name}")

        return pull(model, progress, say)


def _file_of(name: str) -> Path | None:
    """The file of a bundled or cached model, not checked; None where it is not here."""
    model = model_named(name)
    if model is None or model.file is None:
        return cached_file(name)
    from ..models.weights import bundled_folder

    return bundled_folder() / model.file


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
    """Format a value for the terminal."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _tasks(record: Record) -> list[str]:
    """What an imported model may be for."""
    if record.task:
        return [record.task]
    return [task.name for task in TASKS.values() if (task.scale > 1) == (record.scale > 1)]


def _model_row(model: Model) -> tuple[str, ...]:
    score = " ".join(map(_cell, model.scores[:1]))
    size = _millions(model.parameters)
    return model.name, model.task, _step(model), size, model.degradation, score, _state(model)


def _record_row(record: Record) -> tuple[str, ...]:
    tasks, size = " or ".join(_tasks(record)), _millions(record.parameters)
    return (
        record.name,
        tasks,
        f"x{record.scale}",
        size,
        f"imported from {record.source}",
        "",
        "here",
    )


def _print_recommended(models: Sequence[Model], imported: Sequence[Record]) -> None:
    """The models that are here, and for each of them the one that is worth fetching."""
    here = [model for model in models if is_here(model)]
    rows = [(m.name, m.task, _step(m), m.degradation, _state(m)) for m in here]
    others = [_record_row(record) for record in imported]
    rows += [(name, task, step, what, state) for name, task, step, _, what, _, state in others]
    shown = {model.name for model in here}
    for model in here:
        better = better_model(model)
        if better and better.name not in shown:
            shown.add(better.name)
            slower = better.gmacs / model.gmacs
            why = (
                f"{gain(better, model):.1f} dB better than {model.name}, {slower:.0f} times slower"
            )
            rows.append((better.name, better.task, _step(better), why, _state(better)))
    print_table(("name", "task", "scale", "for", "file"), rows)
    left = len(models) - len(shown & {model.name for model in models})
    if left:
        print(f"{left} more: mambair models list --all")


def _step(model: Model) -> str:
    """The scale of a model, or the level that it is for."""
    if not model.levels:
        return f"x{model.scale}"
    return f"{TASKS[model.task].level} {'-'.join(map(str, dict.fromkeys(model.levels)))}"


def _cell(score: Score, name: bool = True) -> str:
    # Some papers print three digits.
    ssim = f"{score.ssim:.4f}".removesuffix("0") if score.ssim else ""
    figures = f"{score.psnr:.2f}{' / ' if ssim else ''}{ssim}"
    return f"{score.dataset} {figures} ({score.channel})" if name else figures


def _state(model: Model) -> str:
    if model.bundled or cached_file(model.name):
        return "bundled" if model.bundled else "here"
    return "to fetch" if model.urls else "no address"


MarkdownRow = tuple[str, str, str, str, tuple[Score, ...], str, str]


def _baselines(task: Task, models: list[Model]) -> Iterator[MarkdownRow]:
    """What the models of a task have to beat, for each of their scales or levels."""
    table, method, setting = BASELINES.get(task.name, ("", "", "{}"))
    single = [m for m in models if m.levels is None or m.levels[0] == m.levels[1]]
    steps = {_step(m): m.levels[0] if m.levels else m.scale for m in single}
    for step, number in sorted(steps.items(), key=lambda pair: pair[1]):
        if scores := published_scores(table, setting.format(number), method):
            yield f"({method})", step, "", "", scores, "", ""


def _markdown(task: Task) -> Iterator[str]:
    """The table of a task's models with their scores: measured of bundled ones, else published."""
    models = [model for model in list_models() if model.task == task.name]
    rows = list(_baselines(task, models))
    for m in models:
        file = "bundled" if m.bundled else "to fetch" if m.urls else "no address"
        size = _millions(m.parameters)
        rows.append((f"`{m.name}`", _step(m), size, m.degradation, m.scores, m.licence, file))
    sets = list(dict.fromkeys(score.dataset for row in rows for score in row[4]))
    channels = ", ".join(dict.fromkeys(score.channel for row in rows for score in row[4]))
    yield f"`mambair {task.name}` (PSNR in dB and SSIM; {channels})"
    yield ""
    columns = " | ".join([*sets, "licence", "file"])
    yield f"| model | {task.level or 'scale'} | parameters | for | {columns} |"
    yield "|---" * (6 + len(sets)) + "|"
    for name, step, size, purpose, scores, licence, file in rows:
        cells = {score.dataset: _cell(score, name=False) for score in scores}
        figures = [cells.get(dataset, "") for dataset in sets]
        yield f"| {' | '.join([name, step, size, purpose, *figures, licence, file])} |"
