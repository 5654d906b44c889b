"""`streamq config show` and `streamq config check`, as a person and as a script use them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from streamq.settings.table import SETTINGS


@pytest.fixture
def config(tmp_path):
    """Run `streamq config ...` in a folder of its own with an environment of its own."""

    def config(*arguments, dot_env="", **environ):
        (tmp_path / ".env").write_text(dot_env)
        command = [sys.executable, "-m", "streamq", "config", *arguments]
        where = {"PYTHONPATH": ":".join(sys.path), "PYTHONSAFEPATH": "1"}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=50, check=False, cwd=tmp_path, env={**where, **environ}
        )

    return config


def test_show_prints_name_value_and_source_with_tabs_when_piped(config):
    """`cut -f2` and `grep` need no option."""
    told = config("show", dot_env="WORKER_CONCURRENCY=7")
    rows = [line.split("\t") for line in told.stdout.splitlines()]
    assert [row[0] for row in rows] == list(SETTINGS)
    assert ["worker_concurrency", "7", "WORKER_CONCURRENCY from .env"] in rows
    assert told.returncode == 0
    assert "warning:" not in told.stderr


def test_show_as_json_is_one_document_with_the_warnings(config):
    """A deploy script can refuse a typo."""
    told = config("show", "--json", STREAMQ_MAX_DEPHT="9", REDIS_URL="redis://:s3cret@cache:6379/0")
    document = json.loads(told.stdout)
    assert {"name": "redis_url", "value": "redis://:***@cache:6379/0", "source": "REDIS_URL from the environment"} in (
        document["items"]
    )
    assert document["warnings"] == [
        "STREAMQ_MAX_DEPHT from the environment is not a setting: did you mean STREAMQ_MAX_DEPTH?"
    ]
    assert "s3cret" not in told.stdout + told.stderr


def test_show_with_q_prints_the_names(config):
    """For xargs."""
    assert config("show", "-q").stdout.splitlines() == list(SETTINGS)


def test_what_was_given_and_not_used_is_told_on_standard_error(config):
    """It is no data."""
    told = config("show", dot_env="STREAMQ_MAX_DEPHT=9")
    assert told.stderr == "warning: STREAMQ_MAX_DEPHT from .env is not a setting: did you mean STREAMQ_MAX_DEPTH?\n"


def test_check_says_ok_and_nothing_on_standard_output(config):
    """The exit code is the answer."""
    told = config("check", WORKER_INSTANCES="4")
    assert (told.returncode, told.stdout) == (0, "")
    assert told.stderr == f"ok: {len(SETTINGS)} settings can be used, 1 of them not the default\n"
    assert json.loads(config("check", "--json").stdout) == {"ok": True, "warnings": []}


@pytest.mark.parametrize("command", ["show", "check"])
def test_settings_that_cannot_be_used_end_with_78_and_are_all_named(config, command):
    """One run tells all there is to correct."""
    told = config(command, dot_env="WORKER_CONCURRENCY=three", REDIS_PORT="0")
    assert told.returncode == 78
    assert told.stderr == (
        "error: 2 settings cannot be used\n"
        "       WORKER_CONCURRENCY from .env is 'three': "
        "expected a whole number from 1 to 10000, for example WORKER_CONCURRENCY=3\n"
        "       REDIS_PORT from the environment is '0': "
        "expected a whole number from 1 to 65535, for example REDIS_PORT=6379\n"
        "  try: correct it where it was set, then run: streamq config check\n"
        "exit 78\n"
    )


def test_settings_that_cannot_be_used_are_told_in_json(config):
    """On standard output, like every answer."""
    told = config("check", "--json", WORKER_INSTANCES="0")
    error = json.loads(told.stdout)["error"]
    assert (error["type"], error["exit_code"], told.returncode) == ("ConfigurationError", 78, 78)
    assert error["message"].startswith("WORKER_INSTANCES from the environment is '0'")
