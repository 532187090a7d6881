"""Values kept for objects by their identity."""

from __future__ import annotations

from robustflow._by_identity import ByIdentity


class Equal:
    """Equal to all of its kind, and without a hash."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)


def test_equal_objects_have_values_of_their_own() -> None:
    values, first, second = ByIdentity[str](), Equal(), Equal()
    values.set(first, "first")
    assert values.get(second) is None
    values.set(second, "second")
    values.set(first, "again")
    assert values.get(first) == "again" and values.get(second) == "second"


def test_objects_that_died_are_forgotten() -> None:
    values, living = ByIdentity[int](), [Equal() for _ in range(5)]
    for number, each in enumerate(living):
        values.set(each, number)
    for _ in range(10_000):
        values.set(Equal(), -1)
    assert [values.get(each) for each in living] == list(range(5))
    assert all(owner is each for owner, each in zip(values.owners(), living, strict=True))
    assert len(values._entries) == 5
