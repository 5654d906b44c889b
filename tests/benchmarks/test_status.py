"""What the benchmark of the status side measures on: as many statuses as it says, such as the recorder writes."""

from __future__ import annotations

import pytest

from benchmarks.mongo import MongoServer
from benchmarks.routes import USERS, store
from streamq.mongo.schema import VALIDATORS

COUNT = 2_345


@pytest.fixture(scope="module")
def mongo():
    """A server of the benchmark's own."""
    with MongoServer(cache_gb=0.3) as server:
        yield server


def test_statuses_are_made_by_the_server_in_the_number_and_shape_that_was_asked_for(mongo):
    """Five million that come over the wire would take three times as long."""
    told = []
    store(mongo, "made", COUNT, lambda *words: told.append(words))
    with mongo.client() as client:
        jobs = client["made"]["job_status"]
        assert jobs.count_documents({}) == COUNT
        assert jobs.count_documents({"$nor": [VALIDATORS["job_status"]]}) == 0
        assert len(jobs.distinct("user")) == min(COUNT, USERS)
        dead, completed = jobs.find_one({"state": "dead"}), jobs.find_one({"state": "completed"})
        assert jobs.count_documents({"state": "dead"}) == -(-COUNT // 100)
        assert (len(dead["_id"]), dead["error"]["type"], "result" in dead) == (26, "ValueError", False)
        assert ("error" in completed, completed["result"]) == (False, {"events": completed["version"]})
        first, last = (jobs.find_one(sort=[("enqueued_at", way)]) for way in (1, -1))
        assert (last["enqueued_at"] - first["enqueued_at"]).total_seconds() == pytest.approx(19 * 3600, rel=0.01)
        assert client["made"].list_collection_names() == ["job_status"], "the seeds are gone"
    assert told[-1][0] == "documents"
    assert told[-1][2] == COUNT


def test_what_would_not_fit_on_the_disk_is_refused_before_it_is_begun(mongo):
    """A full disk stops whatever else runs on the machine."""
    with pytest.raises(RuntimeError, match=r"1000000\.0 GB are needed in .*, and .* GB are free: set TMPDIR"):
        store(mongo, "unmade", 10**12)
    with mongo.client() as client:
        assert "unmade" not in client.list_database_names()


def test_a_server_with_a_larger_cache_has_one(mongo):
    """Otherwise the figures are those of the smallest."""
    with mongo.client() as client:
        cache = client.admin.command("serverStatus")["wiredTiger"]["cache"]
    assert cache["maximum bytes configured"] == pytest.approx(0.3 * 2**30, rel=0.02)
