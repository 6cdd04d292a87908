import typer
from typer.testing import CliRunner

from mambair_cli.commands.help import COMMON, SIZE, Command, Group


def shown(function, **settings):
    app = typer.Typer(cls=Group)
    app.command("one", cls=Command, **settings)(function)
    app.command("upscale", cls=Command)(lambda: None)
    return CliRunner().invoke(app, ["one", "--help"], env={"COLUMNS": "80"}).output


def test_a_flag_shows_no_type_and_examples_stand_at_the_end():
    def one(
        flag: bool = typer.Option(False, "--flag", rich_help_panel=COMMON),
        wide: int = typer.Option(3, rich_help_panel=SIZE),
    ) -> None: ...

    text = shown(one, epilog="mambair one\nmambair one --flag")
    assert "bool" not in text
    assert text.endswith("Examples:\n   mambair one\n   mambair one --flag\n\n")
    common, size = (text.index(f"─ {panel} ─") for panel in (COMMON, SIZE))
    assert common < text.index("--flag") < text.index("--verbose") < size < text.index("--wide")


def test_without_panels_all_options_stand_together():
    def one(
        other: str = "",
        common: bool = typer.Option(False, "--common", rich_help_panel=COMMON),
    ) -> None: ...

    text = shown(one)
    assert "─ Options ─" in text
    assert f"─ {COMMON} ─" not in text
    assert all(name in text for name in ("--other", "--common", "--verbose", "--help"))


def test_commands_stand_in_the_order_of_the_program():
    app = typer.Typer(cls=Group)
    for name in ("zebra", "train", "upscale"):
        app.command(name, cls=Command)(lambda: None)
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output
    places = [text.index(f" {name} ") for name in ("upscale", "train", "zebra")]
    assert places == sorted(places)
