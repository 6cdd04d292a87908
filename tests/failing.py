"""What a foreseen error looks like; shared by tests."""

import pytest


def fails(call, error, *words):
    """The call raises error, with one line that has all words; the line."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    for word in words:
        assert str(word) in message
    return message
