"""What the fairness benchmark does besides measuring: its loads, and what it reads while handlers write."""

from __future__ import annotations

import pytest

from benchmarks.fairness import Hour, _load, _Reader, _taken


def test_a_fifth_of_the_users_is_a_hundred_times_slower_and_hints_are_off_by_up_to_a_half():
    """All systems get these very jobs, in this order."""
    visits, fast, slow = _load(100, 4.0, 1)
    assert (len(fast), len(slow), len({each.user for each in visits})) == (80, 20, 100)
    assert {each.ms for each in visits} == {4.0, 400.0}
    assert all(500 <= each.hint / each.ms <= 1500 for each in visits)
    assert _load(100, 4.0, 1) == (visits, fast, slow)
    assert _load(100, 4.0, 2)[0] != visits


def test_a_line_that_is_half_written_is_read_when_it_is_whole(tmp_path):
    """Handlers write while the benchmark reads."""
    starts, ends = {}, {}
    file = tmp_path / "journal"
    read = _Reader(file, starts, ends)
    read()
    file.write_text("start ada 7 100 1\nend ada 7 1")
    read()
    assert (starts, ends) == ({"ada": 100}, {})
    with file.open("a") as opened:
        opened.write("50 1\nstart ada 7 900 2\n")
    read()
    assert (starts, ends) == ({"ada": 100}, {"ada": 150})


def test_the_99th_percentile_is_that_of_the_users_asked_for():
    hour = Hour({"ada": 1.0, "bob": 2.0, "eve": 9.0}, 10.0)
    assert hour.p99(["ada", "bob"]) == 2.0


def test_the_option_for_the_picture_is_taken_out_of_the_arguments():
    arguments = ["--quick", "--plot", "x.svg", "--json"]
    assert (_taken(arguments, "--plot"), arguments) == ("x.svg", ["--quick", "--json"])
    assert _taken(arguments, "--plot") == ""
    with pytest.raises(SystemExit, match="--plot needs the name of a file"):
        _taken(["--plot"], "--plot")
