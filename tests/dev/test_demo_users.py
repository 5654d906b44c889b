"""The users of the demo: who they are, and what a file of their ids may hold."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import pytest

from streamq.demo.users import EVENTS_PER_PAGE, made_up, read_ids, with_traits
from streamq.errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def users_file(tmp_path: Path) -> Path:
    """A path for the file of a test."""
    return tmp_path / "users.txt"


def test_one_in_five_is_slow_and_one_in_a_hundred_is_flaky():
    """Exact shares, so that the figures of two runs can be compared."""
    users = list(with_traits(made_up(1000)))

    assert sum(user.is_slow for user in users) == 200
    assert sum(user.is_flaky for user in users) == 10


def test_slow_users_have_a_hundred_times_as_much_and_some_have_far_more():
    """The set-up that the demo stands for has just this shape."""
    users = list(with_traits(made_up(1000)))
    fast = {user.events for user in users if not user.is_slow}
    slow = [user.events for user in users if user.is_slow]

    assert fast == {EVENTS_PER_PAGE}
    assert min(slow) >= 100 * EVENTS_PER_PAGE
    assert max(slow) > 3 * statistics.median(slow), "the tail is heavy"


def test_the_same_number_gives_the_same_users():
    """Nothing is random from run to run."""
    assert list(with_traits(made_up(300))) == list(with_traits(made_up(300)))


@pytest.mark.parametrize("count", [0, -1])
def test_no_users_are_refused(count: int):
    """A run over nobody would succeed and show nothing."""
    with pytest.raises(BadInput, match=f"cannot create {count} users: expected 1 or more"):
        made_up(count)


@pytest.mark.parametrize(
    "text",
    [
        "user_id\nu1\nu2\n",
        "u1\nu2",
        "name,ID\nAda,u1\nGrace,u2\n",
        "\ufeffuser_id\r\nu1\r\n\r\nu2\r\n",
        '{"user_id": "u1"}\n{"id": "u2", "more": 1}\n',
        '"u1"\n"u2"\n',
        'id,note\n"u1","one, two"\nu2,\n',
    ],
    ids=["header", "bare", "column among others", "bom and blank lines", "objects", "json strings", "quoted"],
)
def test_a_file_of_ids_is_read_in_its_order(users_file: Path, text: str):
    """Whatever tool has exported it."""
    users_file.write_text(text)

    assert read_ids(users_file) == ["u1", "u2"]


def test_json_numbers_are_ids(users_file: Path):
    """Most databases number their users."""
    users_file.write_text('{"user_id": 42}\n{"user_id": 43}\n')

    assert read_ids(users_file) == ["42", "43"]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_an_error(users_file: Path, text: str):
    """It is a failed export far more often than a wish."""
    users_file.write_text(text)

    with pytest.raises(BadInput, match="holds no users") as refusal:
        read_ids(users_file)
    assert "one a line" in refusal.value.hint
    assert refusal.value.exit_code == 65


def test_a_header_alone_is_an_error(users_file: Path):
    """The same, with a better exporter."""
    users_file.write_text("user_id\n")

    with pytest.raises(BadInput, match="holds a header and no users"):
        read_ids(users_file)


def test_a_missing_file_is_named(tmp_path: Path):
    """With the reason that the system gives."""
    with pytest.raises(BadInput, match=r"cannot read .*nowhere.csv: No such file or directory"):
        read_ids(tmp_path / "nowhere.csv")


def test_text_that_is_not_utf8_is_named_by_its_line(users_file: Path):
    """An id that was decoded wrongly would be another user."""
    users_file.write_bytes(b"u1\nu2\n\xff\n")

    with pytest.raises(BadInput, match=r"users.txt, line 3 is not UTF-8 text: nothing of it counts"):
        read_ids(users_file)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"user_id": "u1"}\n{"user_id": \n', "line 2: not JSON: "),
        ('{"user_id": "u1"}\n{"name": "Ada"}\n', "line 2: the object has none of user_id, id, user"),
        ('{"user_id": "u1"}\n{"user_id": null}\n', "line 2: None is not a user id"),
        ('{"user_id": "u1"}\n{"user_id": true}\n', "line 2: True is not a user id"),
        ('{"user_id": "u1"}\n{"user_id": ["u2"]}\n', r"line 2: \['u2'\] is not a user id"),
        ("user_id,name\nu1,Ada\nu2\n", "line 3: 1 columns instead of 2"),
        ("user_id,name\nu1,Ada\n,Grace\n", "line 3: '' is not a user id"),
        ("name,age\nAda,36\n", "line 1: 2 columns, and none is called user_id, id, user"),
        ("u1\nu2\nu1\n", "line 3: 'u1' stands in line 1 already"),
        ('u1\n"u2\n', "line 2: not CSV: unexpected end of data"),
        ('u1\n"u2"x\n', "line 2: not CSV: "),
        (f"u1\n{'x' * 200_000}\n", "line 2: not CSV: field larger than field limit"),
        (f"u1\n{'x' * 300}\n", "line 2: a user id has at most 256 characters, and this one has 300"),
        ("u1\nu\x00\n", "line 2: 'u.x00' holds characters that cannot be printed"),
    ],
)
def test_a_line_that_is_not_good_is_named_and_nothing_is_created(users_file: Path, text: str, problem: str):
    """Half of a list of users is worse than none: nobody would look for the other half."""
    users_file.write_text(text)

    with pytest.raises(BadInput, match=f"one line is not good, so nothing was created\n{problem}"):
        read_ids(users_file)


def test_every_bad_line_is_told_up_to_ten(users_file: Path):
    """One run is enough to correct a file, and a wrong file does not fill the screen."""
    users_file.write_text("u1\n" * 14)

    with pytest.raises(BadInput) as refusal:
        read_ids(users_file)
    lines = str(refusal.value).splitlines()
    assert "13 lines are not good" in lines[0]
    assert [line.partition(":")[0] for line in lines[1:11]] == [f"line {number}" for number in range(2, 12)]
    assert lines[11] == "and 3 more"
