"""UIDs are derived from the things that they identify."""

from __future__ import annotations

import uuid

import pytest

from dicomnode import uids


def test_same_parts_make_the_same_uid_and_others_another() -> None:
    assert uids.derive("a", "b") == uids.derive("a", "b")
    assert len({uids.derive(*parts) for parts in (("a", "b"), ("b", "a"), ("ab",), ("ab", ""), ("a", "b", ""))}) == 5


def test_a_uid_is_valid_and_a_uuid() -> None:
    for number in range(200):
        uid = uids.derive("instance", str(number))
        assert uid.is_valid
        found = uuid.UUID(int=int(uid.removeprefix("2.25.")))
        assert (found.variant, found.version) == (uuid.RFC_4122, 8)


def test_a_prefix_is_kept_within_64_characters() -> None:
    root = "1.2.826.0.1.3680043.10.9999.12345678"
    uid = uids.derive("a", prefix=root)
    assert uid.is_valid
    assert uid.startswith(root + ".")
    assert uid != uids.derive("b", prefix=root)


@pytest.mark.parametrize("prefix", ["x", "1.02", "1." + "2" * 60])
def test_a_prefix_that_is_no_root_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="is not a UID root"):
        uids.derive("a", prefix=prefix)


def test_nothing_has_no_uid() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        uids.derive()
