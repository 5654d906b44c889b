"""What the fairness benchmark does besides measuring: its loads, and what it reads while handlers write."""

from __future__ import annotations

import pytest

from benchmarks.fairness import PEERS, _peer, main, parts
from benchmarks.harness import Report, Scale
from benchmarks.plots import plot_fairness, started
from benchmarks.visits import Hour, JournalReader, load_of


def test_a_fifth_of_the_users_is_a_hundred_times_slower_and_hints_are_off_by_up_to_a_half():
    """All systems get these very jobs, in this order."""
    visits, fast, slow = load_of(100, 4.0, 1)
    assert (len(fast), len(slow), len({each.user for each in visits})) == (80, 20, 100)
    assert {each.ms for each in visits} == {4.0, 400.0}
    assert all(500 <= each.hint / each.ms <= 1500 for each in visits)
    assert load_of(100, 4.0, 1) == (visits, fast, slow)
    assert load_of(100, 4.0, 2)[0] != visits


def test_a_line_that_is_half_written_is_read_when_it_is_whole(tmp_path):
    """Handlers write while the benchmark reads."""
    starts, ends = {}, {}
    file = tmp_path / "journal"
    read = JournalReader(file, starts, ends)
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


def test_the_waits_of_fast_and_of_slow_users_are_kept_apart():
    assert Hour({"ada": 1.0, "bob": 2.0, "eve": 9.0}, 10.0).sides(["bob", "ada"], ["eve"]) == ([2.0, 1.0], [9.0])


def test_the_help_tells_of_the_picture(capsys):
    """The option belongs to this benchmark, and the others do not have it."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "--plot FOLDER" in capsys.readouterr().out


def test_every_figure_can_be_asked_for_by_name(capsys):
    """A name of nothing is refused before anything is measured."""
    with pytest.raises(SystemExit) as ended:
        main(["--only", "nonsense_p99_vs_fifo"])
    assert ended.value.code == 2
    assert "there is no figure nonsense_p99_vs_fifo" in capsys.readouterr().err


def test_each_peer_has_a_figure_in_a_full_run_and_none_in_a_quick_one():
    """A quick run has no time for them."""
    named = {name for part in parts({}, Scale(quick=False)) for name in part.measures}
    assert {f"{system}_fast_p99_vs_fifo" for system in PEERS} < named
    quick = {name for part in parts({}, Scale(quick=True)) for name in part.measures}
    assert not any(name.startswith(system) for name in quick for system in PEERS)


def test_a_quick_run_is_planned_for_fifty_seconds():
    """Rounds beyond the first are begun only within the plan."""
    assert sum(part.quick_s for part in parts({}, Scale(quick=True))) <= 50


def test_the_picture_rises_with_every_user_who_starts(tmp_path):
    """Without anybody there is none, and matplotlib is not needed."""
    assert started([3.0, 1.0, 2.0, 9.0]) == ([1.0, 2.0, 3.0, 9.0], [25.0, 50.0, 75.0, 100.0])
    plot_fairness({}, tmp_path / "pictures")
    assert not (tmp_path / "pictures").exists()


@pytest.mark.slow
def test_another_queue_gets_the_same_users_and_is_drawn_and_told_beside_fifo():
    """Any system will do, and this one needs nothing that is not here."""
    report, waits = Report("fairness", Scale(quick=True)), {}
    _peer(report, waits=waits, system="streamq", users=20, fast_ms=1.0)
    (told,) = report.results
    assert (told.name, told.unit, told.bar) == ("streamq_fast_p99_vs_fifo", "x FIFO", None)
    assert told.size.startswith("20 users, 1 and 100 ms, 6 slots")
    assert told.value == told.detail["p99_wait_s"] / told.detail["fifo_p99_wait_s"] > 0
    assert [len(side) for side in waits["streamq"]] == [16, 4]
