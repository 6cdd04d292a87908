import pytest
from training import CPU, recipe, write_photos

from mambair_cli.errors import CallError
from mambair_cli.training.inputs import Folders, Settings, open_data


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
