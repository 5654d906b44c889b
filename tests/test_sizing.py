"""What `streamq plan` says: the arithmetic of the model, and what gives out first."""

import json

import pytest
from click.testing import CliRunner

from streamq.cli.plan import plan
from streamq.sizing import FIGURES, Load, needs_of


def test_slots_follow_the_time_that_jobs_run_with_a_fifth_to_spare():
    """Little's law: jobs a second times how long each runs."""
    assert needs_of(Load(3_600, run_s=8.0)).slots == 10
    assert needs_of(Load(3_600, run_s=8.0, concurrency=3)).processes == 4


def test_jobs_that_compute_want_processes_and_not_slots():
    """A hundred slots in one process share one processor."""
    needs = needs_of(Load(36_000, run_s=1.0, cpu_share=1.0, concurrency=100))
    assert needs.processes == 13
    assert needs.worker_cores == pytest.approx(10, rel=0.01)


def test_twice_the_users_take_twice_of_everything():
    """Nothing in the model, as nothing in the queue, grows faster than the users."""
    one, two = (needs_of(Load(users)) for users in (1_000_000, 2_000_000))
    for name in ("worker_cores", "redis_core_share", "redis_mb", "enqueue_s", "recorder_core_share"):
        assert getattr(two, name) == pytest.approx(2 * getattr(one, name))


@pytest.mark.parametrize(
    ("seconds_per_job", "limit"),
    [
        (FIGURES.redis_us / 1e6, "Redis: one server cannot do this many"),
        (FIGURES.recorder_us / 1e6, "the recorder: run several"),
        (1.0, ""),
    ],
    ids=["redis", "recorder", "none"],
)
def test_the_first_thing_to_give_out_is_named(seconds_per_job, limit):
    """So that nobody buys workers when Redis is the limit."""
    users = int(3600 / seconds_per_job)
    assert needs_of(Load(users)).limit.startswith(limit)


def test_a_divided_queue_takes_more_of_redis_and_may_have_it_of_several_masters():
    """A cluster is worth it only when one server is not enough."""
    users = int(3600 / (FIGURES.redis_us / 1e6))
    one, three = needs_of(Load(users)), needs_of(Load(users, partitions=3))
    assert (one.masters, three.masters) == (2, 2)
    assert three.redis_core_share > one.redis_core_share
    assert three.worker_cores > one.worker_cores
    assert not three.limit.startswith("Redis")


def test_more_masters_than_partitions_are_no_help():
    """A partition lies on one master."""
    users = int(3 * 3600 / (FIGURES.redis_us / 1e6))
    limit = needs_of(Load(users, partitions=2)).limit
    assert (
        limit == "Redis: 2 masters cannot do this many; divide the queue over 5 masters or more, or use several queues"
    )


def test_nobody_has_less_than_one_worker():
    """Ten users need a process, too."""
    needs = needs_of(Load(10, run_s=0.0))
    assert (needs.slots, needs.processes) == (1, 1)


def test_the_command_prints_what_a_load_takes_and_how_to_start_it():
    """A table for people, one document for programs."""
    told = CliRunner().invoke(plan, ["--users", "1000000", "--run-s", "0.5"])
    assert told.exit_code == 0
    assert "streamq worker APP --instances 58 --concurrency 3" in told.stderr
    document = json.loads(CliRunner().invoke(plan, ["--users", "1000000", "--run-s", "0.5", "--json"]).stdout)
    assert (document["slots"], document["processes"]) == (174, 58)


def test_no_users_at_all_are_refused():
    """Exit code 2: the command line is wrong."""
    told = CliRunner().invoke(plan, ["--users", "0"])
    assert told.exit_code == 2
    assert "0 is not in the range x>=1" in told.stderr
