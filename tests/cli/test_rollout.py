"""Moving from the old system and back, one command a step."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pymongo
import pytest


def flags_of(mongodb_url, database) -> dict:
    with pymongo.MongoClient(mongodb_url) as client:
        return client[database]["flags"].find_one({"_id": "streamq"}) or {}


def test_each_phase_is_one_command_and_is_undone_by_another(command, mongodb_url, mongo_database):
    """The old system reads the same document."""
    status = lambda: json.loads(command("rollout", "status", "--json").out)  # noqa: E731
    assert command("rollout", "off").code == 0
    assert status()["background_jobs.enabled"] is False
    assert any(cell.startswith("paused") for cell in command("queues", "ls").rows[0])
    assert "is false" in command("cron", "--now").err
    assert command("rollout", "shadow").code == 0
    assert status()["shadow"] is True
    assert not any(cell.startswith("paused") for cell in command("queues", "ls").rows[0])
    assert "shadow of the old system" in command("cron", "--now").err
    assert "10% of the users" in command("rollout", "users", "10%").err
    assert (status()["share"], status()["shadow"]) == (0.1, False)
    assert command("rollout", "users", "all").code == 0
    told = command("rollout", "status")
    assert (told.code, "both systems refresh all users" in told.err) == (1, True)
    command("rollout", "old-batch", "off")
    assert command("rollout", "status").code == 0
    flags = flags_of(mongodb_url, mongo_database)
    assert (flags["enabled"], flags["share"], flags["daily_updates"]) == (True, 1.0, False)
    command("rollout", "users", "50%")
    told = command("rollout", "status")
    assert (told.code, "the old batch is off, and not all users are streamq's" in told.err) == (1, True)


def test_whoever_does_not_move_is_told_so_and_nothing_is_wrong(command, monkeypatch):
    """Until there is a word of another system, in a setting or by a command."""
    told = command("rollout", "status")
    assert (told.code, "no move from another system is under way" in told.err) == (0, True)
    assert json.loads(command("rollout", "status", "--json").out)["moving"] is False
    monkeypatch.setenv("BACKGROUND_JOBS_ENABLED", "false")  # the first phase, as it should be
    told = command("rollout", "status")
    assert (told.code, told.rows[1]) == (0, ["phase", "off: nothing fires"])
    monkeypatch.delenv("BACKGROUND_JOBS_ENABLED")
    monkeypatch.setenv("STREAMQ_ROLLOUT", "all")
    told = command("rollout", "status")
    assert (told.code, "both systems refresh all users" in told.err) == (1, True)
    monkeypatch.delenv("STREAMQ_ROLLOUT")
    command("rollout", "users", "all")
    assert command("rollout", "status").code == 1


def test_a_share_that_is_none_is_refused(command):
    told = command("rollout", "users", "ten")
    assert (told.code, "'ten' is not a share of the users" in told.err) == (65, True)


def test_a_settings_switch_wins_over_what_is_stored(command, monkeypatch):
    command("rollout", "users", "all")
    monkeypatch.setenv("BACKGROUND_JOBS_ENABLED", "false")
    told = command("rollout", "status")
    assert told.code == 1
    assert "background_jobs.enabled is false (environment BACKGROUND_JOBS_ENABLED" in told.err.replace("  ", " ") or (
        "BACKGROUND_JOBS_ENABLED" in told.err
    )


def test_without_history_there_is_no_phase_to_keep(command, monkeypatch):
    monkeypatch.setenv("STREAMQ_HISTORY", "false")
    told = command("rollout", "off")
    assert (told.code, "is kept in MongoDB, and history is off" in told.err) == (78, True)


def test_rollback_exports_what_is_left_and_can_be_undone(command, folder, mongodb_url, mongo_database):
    command("enqueue", "refresh", "user_id=u1", "limit:=3")
    command("enqueue", "refresh", "user_id=u2", "--delay", "3600", "--priority", "high")
    command("schedule", "enqueue", "everybody", "--user", "ü 3")
    told = command("rollback", "--output", "left.ndjson", "--drain-timeout", "5")
    assert (told.code, told.err) == (0, "3 jobs written, 0 still run\n")
    left = {job["user"]: job for job in map(json.loads, (folder / "left.ndjson").read_text().splitlines())}
    assert set(left) == {"u1", "u2", "ü 3"}
    assert left["u1"]["kwargs"] == {"user_id": "u1", "limit": 3}
    assert (left["u2"]["state"], left["u2"]["priority"]) == ("delayed", "high")
    assert left["u2"]["due_ms"] > left["u2"]["enqueued_ms"]
    assert left["ü 3"]["occurrence"].startswith("everybody:")
    flags = flags_of(mongodb_url, mongo_database)
    assert (flags["enabled"], flags["daily_updates"]) == (False, True)
    again = command("rollback", "--remove")
    assert len(again.out.splitlines()) == 3
    assert command("rollback").out == ""
    command("rollout", "users", "all")
    assert not any(cell.startswith("paused") for cell in command("queues", "ls").rows[0])


def test_a_shadow_is_reported_with_what_differs(command, mongodb_url, mongo_database):
    fire = datetime(2026, 3, 1, 12, tzinfo=UTC)
    shadow = {
        "schedule": "everybody", "users": 2, "fire_at": fire, "took_s": 0.5, "legacy": {"users": 3, "took_s": 40.0},
        "only_here": 0, "only_there": 1, "agrees": False,
    }  # fmt: skip
    with pymongo.MongoClient(mongodb_url) as client:
        client[mongo_database]["shadow"].insert_many(
            [
                {"_id": "everybody:1", **shadow},
                {"_id": "everybody:2", "schedule": "everybody", "fire_at": fire + timedelta(hours=1)},
            ]
        )
    told = command("rollout", "report", "--json")
    newest, older = json.loads(told.out)["items"]
    assert (told.code, newest["agrees"], older["old_users"], older["only_there"]) == (1, None, 3, 1)


def test_a_bullmq_queue_is_imported_with_a_report(command, redis_url):
    """Every option is told; what cannot be read as a pair is refused."""
    import redis

    with redis.Redis.from_url(redis_url) as client:
        client.rpush("bull:old:wait", "2", "1")
        client.hset("bull:old:1", mapping={"name": "refresh", "data": '{"userId": "u1"}', "opts": "{}"})
        client.hset("bull:old:2", mapping={"name": "other", "data": '{"who": "u2"}', "opts": "{}"})
        told = command("import", "bullmq", "old", "--dry-run")
        assert (told.code, "refused: waiting job 2 (other)" in told.err) == (1, True)
        options = ("--handler", "other=refresh", "--argument", "who=user_id")
        told = command("import", "bullmq", "old", *options, "--json")
        waiting = json.loads(told.out)["states"][0]
        assert (told.code, waiting["state"], waiting["found"], waiting["imported"]) == (0, "waiting", 2, 2)
        assert "'x' does not say what becomes of what" in command("import", "bullmq", "old", "--handler", "x").err
        assert command("import", "bullmq", "none").code == 65
        client.delete("bull:old:wait", "bull:old:1", "bull:old:2")


@pytest.mark.parametrize("phase", ["off", "shadow"])
def test_what_the_phase_forbids_is_not_fired_by_hand(command, phase):
    command("rollout", phase)
    assert command("schedule", "run", "everybody").code == 78


def test_a_worker_of_a_deployment_that_is_off_starts_no_job(programs, eventually_sync):
    """Until it is told to, or deployed anew."""
    worker = programs.start("worker", "--no-parent", BACKGROUND_JOBS_ENABLED="false")
    eventually_sync(lambda: "worker.quiet" in worker.output, "it says that it starts nothing")
    assert programs.run("enqueue", "refresh", "user_id=u1").code == 0
    row = dict(json.loads(programs.run("queues", "ls", "--json").out)["items"][0])
    assert (row["waiting"], row["running"]) == (1, 0)
    worker.process.send_signal(18)  # CONT
    eventually_sync(lambda: json.loads(programs.run("queues", "ls", "--json").out)["items"][0]["waiting"] == 0)
    assert worker.stop() == 0
