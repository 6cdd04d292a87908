import pytest

from mambair_cli.models.tasks import MAX_SCALE, TASKS


def test_a_task_is_found_by_its_name():
    assert all(name == task.name for name, task in TASKS.items())


def test_only_tasks_with_an_option_have_its_help():
    for task in TASKS.values():
        assert bool(task.option) == bool(task.option_help) == bool(task.settings)
        assert 1 <= task.scale <= MAX_SCALE


@pytest.mark.parametrize(
    ("task", "levels", "level", "nearest"),
    [
        ("denoise", (15, 25, 50), None, 15),
        ("denoise", (15, 25, 50), 16, 25),
        ("denoise", (50, 15, 25), 90, 50),
        ("dejpeg", (10, 30, 40), None, 40),
        ("dejpeg", (10, 30, 40), 39, 30),
        ("dejpeg", (40, 10, 30), 3, 10),
    ],
)
def test_the_nearest_level_that_is_strong_enough(task, levels, level, nearest):
    assert TASKS[task].nearest(levels, level) == nearest
