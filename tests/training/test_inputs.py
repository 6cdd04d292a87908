import pytest
from training import CPU, recipe, write_photos

from mambair_cli.errors import CallError
from mambair_cli.training.inputs import Folders, Settings, open_data
from mambair_cli.training.photos import find_sources, split


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


def test_inputs_to_validate_with_belong_to_truths(photos, tmp_path):
    with pytest.raises(
        CallError, match="`val_low` holds the degraded forms of `val`; give that too"
    ):
        open_data(recipe(), Folders(photos, val_low=tmp_path), CPU)


def test_no_memory_for_photographs_is_none(photos):
    pairs, _, _ = open_data(recipe(), Folders(photos), Settings("cpu", cache=0))
    assert pairs.photos.memory == 0


def test_a_teacher_is_a_folder_of_targets_or_a_model(tmp_path):
    """The folder of a run stands for its model."""
    assert Folders(tmp_path).targets is None
    assert Folders(tmp_path, teacher=tmp_path).targets == tmp_path
    assert Folders(tmp_path, teacher=tmp_path / "tiny-x2").targets is None
    (tmp_path / "model.safetensors").touch()
    assert Folders(tmp_path, teacher=tmp_path / "model.safetensors").targets is None
    assert Folders(tmp_path, teacher=tmp_path).targets is None


@pytest.mark.parametrize("count", [1, 2])
def test_others_are_held_out_where_none_can_be_used(photos, tmp_path, count):
    """A photograph whose head is whole is found to be damaged when it is decoded."""
    bad = tmp_path / "val"
    bad.mkdir()
    (bad / "bad.png").write_bytes(b"no image")
    data = tmp_path / "data"
    data.mkdir()
    for path in photos.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    config = recipe(validation=count)
    chosen = sorted(data.iterdir())
    first, _ = split(find_sources(data, None, 2), None, count)
    held = [path for path in chosen if path not in [source.high for source in first]]
    assert len(held) == count
    for path in held:
        path.write_bytes(path.read_bytes()[:400])
    pairs, validation, skipped = open_data(config, Folders(data), CPU)
    assert len(validation) == count
    assert sorted(reason.split(": ")[0] for reason in skipped) == sorted(map(str, held))
    assert len(pairs.photos.sources) == 6 - 2 * count
    with pytest.raises(CallError, match=r"none of 1 images can be used; .*bad\.png"):
        open_data(config, Folders(photos, val=bad), CPU)
    for path in chosen:
        path.write_bytes(b"no image")
    with pytest.raises(CallError, match=r"none of \d+ images can be used; .*not an image"):
        open_data(config, Folders(data), CPU)
