"""The tests of the import, on what real versions of BullMQ have just written. Needs node 18, npm and its registry.

    bin/test tests/migration/live.py

Not part of the suite, which replays recordings of the same: nobody who runs it should need npm, and none of it is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.migration.test_bullmq import (
    app,
    client,
    test_every_job_comes_over_with_its_payload_and_its_place,
    told,
)

__all__ = ["app", "client", "test_every_job_comes_over_with_its_payload_and_its_place"]

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """Install a version of BullMQ, once, and return where."""
    folder = tmp_path_factory.mktemp("npm")

    def install(version: str) -> Path:
        where = folder / version
        if not where.exists():
            where.mkdir()
            (where / "package.json").write_text("{}")
            words = ["npm", "install", "--no-audit", "--no-fund", "--silent", f"bullmq@{version}", "ioredis@5"]
            subprocess.run(words, cwd=where, check=True, timeout=120)
        return where

    return install


@pytest.fixture
def replayed(redis_url, installed):
    """Have BullMQ fill a queue; return what its jobs are, as the fixture for recordings does."""

    def fill(version: str):
        where = installed(version.partition("-")[0])
        words = ["node", str(HERE / "record.mjs"), str(where), redis_url]
        paused = {"PAUSED": "yes"} if version.endswith("paused") else {}
        done = subprocess.run(
            words, env=dict(os.environ) | paused, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return told([json.loads(line) for line in done.stdout.splitlines()[1:]])

    return fill
