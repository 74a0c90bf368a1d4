"""Ids are made alike, keyed, and pointed at; what is refused is refused without printing an id."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedray.errors import ConfigError, DataError, FedrayError, ProtocolError
from fedray.psi import keyed, normalised, order, pointers

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


@pytest.mark.parametrize(
    "forms",
    [
        ["Ann", " ann ", "ANN", "\tａｎｎ\n", "Ａnn"],
        ["Straße", "STRASSE", "strasse"],
        ["café", "cafe\u0301", "CAFÉ"],
        ["ﬁn", "FIN"],
        [42, "42", np.int64(42), "４２", " 42"],
        [-7, "-7"],
    ],
    ids=str,
)
def test_forms_of_one_id_become_one(forms: list[object]) -> None:
    assert len({normalised([form])[0] for form in forms}) == 1


def test_what_differs_stays_different() -> None:
    ids = ["ann", "anne", "a nn", "01", 1, "1.0", "cafe", "café"]
    assert len(set(normalised(ids))) == len(ids)


def test_normalising_the_normalised_changes_nothing_for_any_character() -> None:
    """Each character of Unicode alone; a caseless match of Unicode's own definition finds the same form."""
    letters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    for letter in letters:
        if not letter.strip():
            continue
        once = normalised([f"a{letter}b"])
        assert normalised(once) == once
        assert once == normalised([_folded_by_unicode(f"a{letter}b")])


def _folded_by_unicode(text: str) -> str:
    """Section 3.13 of the standard, D146: compatibility caseless matching."""
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFD", text).casefold())
    return unicodedata.normalize("NFKD", text.casefold())


@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=8))
def test_normalising_the_normalised_changes_nothing_for_any_text(text: str) -> None:
    assume(unicodedata.normalize("NFKC", text).strip())
    once = normalised([text])
    assert normalised(once) == once
    assert normalised([text.upper().lower() if text.isascii() else text + " "]) == once


SECRET_ID = "patient-77"


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (["a", SECRET_ID, "b", SECRET_ID.upper()], "rows 1 and 3"),
        ([SECRET_ID, " "], "row 1"),
        (["", SECRET_ID], "row 0"),
        ([SECRET_ID, 1.0], "float in row 1"),
        ([True], "bool in row 0"),
        ([None], "NoneType in row 0"),
        ([SECRET_ID.encode()], "bytes in row 0"),
        ([7, "7"], "rows 0 and 1"),
        ([SECRET_ID + "\ud800"], "row 0"),
    ],
    ids=repr,
)
def test_bad_ids_are_refused_by_their_row_and_never_shown(ids: list[Any], says: str) -> None:
    with pytest.raises(DataError) as error:
        normalised(ids)
    assert says in error.value.found
    assert SECRET_ID not in str(error.value).lower()
    assert error.value.__cause__ is None
    with pytest.raises(DataError):
        keyed(ids, KEY)


def test_no_ids_are_no_ids() -> None:
    assert normalised([]) == keyed([], KEY) == []
    assert pointers([], KEY).shape == (0, 16)
    assert order(pointers([], KEY), ["a"], KEY).tolist() == []


def test_keyed_ids_are_the_hmac_of_the_normalised_id() -> None:
    """HMAC by hand, RFC 2104: two hashes with the padded key."""
    padded = KEY + bytes(32)
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded) + b"fedray psi id\0ann").digest()
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded) + inner).hexdigest()
    assert keyed([" Ann"], KEY) == [outer]


def test_another_key_or_purpose_gives_nothing_alike() -> None:
    ids = [str(number) for number in range(50)]
    texts = keyed(ids, KEY) + keyed(ids, OTHER)
    points = [pointer.tobytes().hex() for key in (KEY, OTHER) for pointer in pointers(ids, key)]
    assert len({text[:32] for text in texts} | set(points)) == 200


@pytest.mark.parametrize("key", [b"", bytes(31)])
def test_a_short_key_is_refused(key: bytes) -> None:
    for use in (lambda: keyed(["a"], key), lambda: pointers(["a"], key)):
        with pytest.raises(ConfigError, match="at least 32"):
            use()


@given(names=st.lists(st.integers(0, 40), unique=True), asked=st.lists(st.integers(0, 40), unique=True))
def test_an_owner_finds_the_rows_that_are_pointed_at(names: list[int], asked: list[int]) -> None:
    """Held against a look-up by plain ids; rows that it lacks are random bytes, as the label holder sends them."""
    sent = pointers([str(number) for number in asked], KEY)
    for row, number in enumerate(asked):
        if number % 5 == 0:
            sent[row] = np.random.default_rng(number).integers(0, 256, 16, dtype=np.uint8)
    expected = [-1 if number % 5 == 0 or number not in names else names.index(number) for number in asked]
    found = order(sent, [f" {number} " for number in names], KEY)
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_pointers_of_another_key_find_nothing() -> None:
    ids = ["a", "b", "c"]
    assert order(pointers(ids, OTHER), ids, KEY).tolist() == [-1, -1, -1]


BAD_POINTERS = [
    np.zeros((1, 15), np.uint8),
    np.zeros((1, 16), np.int64),
    np.zeros(16, np.uint8),
    np.zeros((2, 16), np.uint8),
    [b"0" * 16],
]


@pytest.mark.parametrize("sent", BAD_POINTERS, ids=["narrow", "wide type", "flat", "one twice", "a list"])
def test_what_are_no_pointers_is_refused(sent: Any) -> None:
    with pytest.raises(ProtocolError) as error:
        order(sent, ["a"], KEY)
    assert isinstance(error.value, FedrayError)


def test_the_package_loads_neither_ray_nor_torch_nor_its_library() -> None:
    heavy = {"ray", "torch", "tenseal", "private_set_intersection", "google.protobuf"}
    code = f"import sys, fedray.psi; sys.exit(bool({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
