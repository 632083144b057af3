"""The garbage collector is out of the way inside a block, and as it was after it."""

import gc

import pytest

from flatgd.runtime.collector import untouched, without_collector


@pytest.mark.parametrize("is_on", [True, False])
def test_no_collection_inside_and_the_old_state_after(is_on: bool) -> None:
    was_on, found = gc.isenabled(), []

    def fail() -> None:
        with without_collector():
            found.append(gc.isenabled())
            raise ZeroDivisionError

    try:
        (gc.enable if is_on else gc.disable)()
        with pytest.raises(ZeroDivisionError):
            fail()
        found.append(gc.isenabled())
    finally:
        (gc.enable if was_on else gc.disable)()
    assert found == [False, is_on]


class Ring:
    """Garbage that only the collector finds."""

    def __init__(self, gone: list[str], name: str):
        self.own, self.gone, self.name = self, gone, name

    def __del__(self) -> None:
        self.gone.append(self.name)


def test_what_was_made_before_is_left_out_and_collected_after() -> None:
    gone: list[str] = []
    gc.collect()
    Ring(gone, "before")
    with untouched():
        Ring(gone, "inside")
        gc.collect()
        assert gone == ["inside"]
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert gone == ["inside", "before"]
