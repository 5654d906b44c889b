"""Where settings come from, which place wins, and what a person reads when one cannot be used."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import given, strategies as st

from streamq.errors import ConfigurationError
from streamq.settings import Settings, describe, load, spec
from streamq.settings.addresses import fault_of_mongodb_url, fault_of_redis_url, with_credentials
from streamq.settings.table import SETTINGS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def read(tmp_path: Path):
    """Load from a folder of its own and a made-up environment."""

    def read(environ=None, *, dot_env=None, pyproject=None, **flags) -> Settings:
        if dot_env is not None:
            (tmp_path / ".env").write_text(dot_env)
        if pyproject is not None:
            (tmp_path / "pyproject.toml").write_text(pyproject)
        return load(flags, environ=environ or {}, directory=tmp_path)

    return read


@pytest.fixture
def refusal(read):
    """Load what cannot be used, and return the message."""

    def refusal(*args, **kwargs) -> str:
        with pytest.raises(ConfigurationError) as caught:
            read(*args, **kwargs)
        assert caught.value.exit_code == 78
        assert caught.value.hint == "correct it where it was set, then run: streamq config check"
        return str(caught.value)

    return refusal


# Which place wins


def test_without_anything_every_setting_has_its_default(read):
    """The table of the architecture page starts a program."""
    settings = read()
    assert settings == Settings(sources=dict.fromkeys(SETTINGS, "default"))
    assert (settings.worker_concurrency, settings.worker_instances, settings.queues) == (3, 2, ("default",))


def test_flags_win_over_environment_over_dot_env_over_pyproject(read):
    """The nearer a value is to the person who starts the program, the more it counts."""
    below = {
        "dot_env": "STREAMQ_GRACE_MS=3\nSTREAMQ_LEASE_MS=6003\nSTREAMQ_HANG_LIMIT_MS=3",
        "pyproject": "[tool.streamq]\ngrace_ms = 4\nlease_ms = 6004\nhang_limit_ms = 4\nmax_depth = 4",
    }
    settings = read({"STREAMQ_GRACE_MS": "2", "STREAMQ_LEASE_MS": "6002"}, grace_ms=1, **below)
    assert (settings.grace_ms, settings.lease_ms, settings.hang_limit_ms, settings.max_depth) == (1, 6002, 3, 4)
    assert {name: settings.sources[name] for name in ("grace_ms", "lease_ms", "hang_limit_ms", "max_depth")} == {
        "grace_ms": "--drain-timeout",
        "lease_ms": "STREAMQ_LEASE_MS from the environment",
        "hang_limit_ms": "STREAMQ_HANG_LIMIT_MS from .env",
        "max_depth": "max_depth from pyproject.toml",
    }


@pytest.mark.parametrize(
    ("variable", "value", "name", "expected"),
    [
        ("WORKER_CONCURRENCY", "7", "worker_concurrency", 7),
        ("STREAMQ_WORKER_CONCURRENCY", "7", "worker_concurrency", 7),
        ("WORKER_INSTANCES", "4", "worker_instances", 4),
        ("REDIS_URL", "rediss://cache:6380/2", "redis_url", "rediss://cache:6380/2"),
        ("REDIS_HOST", "cache", "redis_url", "redis://cache:6379/0"),
        ("REDIS_PORT", "6380", "redis_url", "redis://127.0.0.1:6380/0"),
        ("REDIS_DB", "5", "redis_url", "redis://127.0.0.1:6379/5"),
        ("REDIS_PASSWORD", "s e/c@r:t", "redis_url", "redis://:s%20e%2Fc%40r%3At@127.0.0.1:6379/0"),
        ("MONGODB_URL", "mongodb://db-1", "mongodb_url", "mongodb://db-1"),
        ("MONGODB_URI", "mongodb+srv://db.example.org", "mongodb_url", "mongodb+srv://db.example.org"),
        ("STREAMQ_QUEUES", " users , mail,", "queues", ("users", "mail")),
        ("STREAMQ_HISTORY", "False", "history", False),
        ("STREAMQ_SLOW_SHARE", "0.25", "slow_share", 0.25),
        ("STREAMQ_LOG_LEVEL", "DEBUG", "log_level", "debug"),
    ],
)
def test_the_original_names_and_ours_are_as_good(read, variable, value, name, expected):
    """A set-up that moves here keeps its `.env`, and messages speak of it in its own words."""
    settings = read({variable: value})
    assert getattr(settings, name) == expected
    assert settings.sources[name] == f"{variable} from the environment"


def test_our_name_wins_over_the_original_in_one_place(read):
    """A process that shares its environment with others can still be told something of its own."""
    settings = read({"WORKER_CONCURRENCY": "5", "STREAMQ_WORKER_CONCURRENCY": "6"})
    assert settings.worker_concurrency == 6


def test_an_empty_variable_counts_as_not_set(read):
    """Compose files pass `${REDIS_URL}` on when nobody has set it."""
    settings = read({"WORKER_CONCURRENCY": "", "REDIS_PASSWORD": " "}, dot_env="WORKER_CONCURRENCY=9")
    assert settings.worker_concurrency == 9
    assert settings.redis_url == "redis://127.0.0.1:6379/0"


def test_a_flag_that_is_none_was_not_given(read):
    """Commands pass all their options on."""
    assert read(worker_concurrency=None).worker_concurrency == 3


def test_pyproject_takes_dashes_lists_and_numbers(read):
    """TOML has types of its own."""
    settings = read(pyproject='[tool.streamq]\nmax-depth = 10\nqueues = ["a", "b"]\nhistory = false\nslow_share = 1')
    assert (settings.max_depth, settings.queues, settings.history) == (10, ("a", "b"), False)


def test_dot_env_is_read_as_the_common_tools_read_it(read):
    """Quotes, comments, `export`, and `${NAME}` from the environment or from above."""
    dot_env = "# ours\nexport NAME='cache'  # why\nREDIS_URL=\"redis://${NAME}:${PORT}/0\"\nSTREAMQ_APP=shop:app # c\n"
    settings = read({"PORT": "6390"}, dot_env=dot_env)
    assert (settings.redis_url, settings.app) == ("redis://cache:6390/0", "shop:app")


def test_reading_never_changes_the_environment(read, monkeypatch):
    """What stands in `.env` is for this program, not for its children by accident."""
    before = dict(os.environ)
    read(dict(os.environ), dot_env="WORKER_CONCURRENCY=9")
    assert dict(os.environ) == before


def test_by_default_the_process_and_its_folder_are_read(tmp_path, monkeypatch):
    """`StreamQ()` without arguments is the usual case."""
    (tmp_path / ".env").write_text("WORKER_CONCURRENCY=9")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKER_INSTANCES", "8")
    settings = load()
    assert (settings.worker_concurrency, settings.worker_instances) == (9, 8)


# The address of Redis in pieces


def test_the_pieces_of_the_address_are_gathered_from_all_places(read):
    """A host in `.env` and a password in the environment are one address."""
    settings = read({"REDIS_PASSWORD": "pw", "REDIS_USERNAME": "ann"}, dot_env="REDIS_HOST=::1\nREDIS_PORT=6380")
    assert settings.redis_url == "redis://ann:pw@[::1]:6380/0"
    assert settings.sources["redis_url"] == (
        "REDIS_HOST from .env, REDIS_PORT from .env, "
        "REDIS_USERNAME from the environment, REDIS_PASSWORD from the environment"
    )
    assert "redis_host" not in settings.sources


def test_a_url_wins_over_pieces_of_the_same_place_and_below(read):
    """One whole address says more than a piece."""
    assert read({"REDIS_URL": "redis://a", "REDIS_HOST": "b"}).redis_url == "redis://a"
    assert read({"REDIS_URL": "redis://a"}, dot_env="REDIS_HOST=b").redis_url == "redis://a"


def test_pieces_win_over_a_url_of_a_place_below(read):
    """The environment overrides `.env`, in whatever form."""
    settings = read({"REDIS_HOST": "b"}, dot_env="REDIS_URL=redis://a")
    assert settings.redis_url == "redis://b:6379/0"
    assert settings.sources["redis_url"] == "REDIS_HOST from the environment"


def test_a_password_completes_a_url_without_one(read):
    """REDIS_URL in the open and REDIS_PASSWORD from a vault go together."""
    settings = read({"REDIS_URL": "redis://cache:6380/1", "REDIS_PASSWORD": "pw"})
    assert settings.redis_url == "redis://:pw@cache:6380/1"
    assert settings.sources["redis_url"] == "REDIS_URL from the environment, REDIS_PASSWORD from the environment"
    assert read({"REDIS_URL": "redis://:own@cache", "REDIS_PASSWORD": "pw"}).redis_url == "redis://:own@cache"


def test_a_password_does_not_go_to_a_server_that_was_chosen_above_it(read):
    """`--redis-url` to another server must not send it the password of the usual one."""
    settings = read({"REDIS_PASSWORD": "pw"}, redis_url="redis://elsewhere")
    assert (settings.redis_url, settings.sources["redis_url"]) == ("redis://elsewhere", "--redis-url")


# Secrets


@pytest.mark.parametrize("variable", ["STREAMQ_API_TOKEN", "REDIS_PASSWORD", "REDIS_URL", "MONGODB_URI"])
def test_a_secret_may_stand_in_a_file(read, tmp_path, variable):
    """Containers get their secrets as files, with a line end that is not part of them."""
    content = {"REDIS_URL": "redis://:s3cret@h", "MONGODB_URI": "mongodb://u:s3cret@h"}.get(variable, "s3cret")
    (tmp_path / "secret").write_text(content + "\n")
    settings = read({variable + "_FILE": str(tmp_path / "secret")})
    value = next(getattr(settings, name) for name in settings.sources if settings.sources[name] != "default")
    assert "s3cret" in value
    assert not value.endswith("\n")
    assert f"{variable}_FILE from the environment" in settings.sources.values()


def test_a_secret_file_that_cannot_be_read_is_named_with_the_reason(refusal, tmp_path):
    """A wrong mount is the usual mistake."""
    missing = tmp_path / "missing"
    assert refusal({"STREAMQ_API_TOKEN_FILE": str(missing)}) == (
        f"STREAMQ_API_TOKEN_FILE from the environment names {missing}, which cannot be read: No such file or directory"
    )
    (tmp_path / "empty").write_text("\n")
    assert refusal({"REDIS_PASSWORD_FILE": str(tmp_path / "empty")}).endswith("/empty, which is empty")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert refusal({"REDIS_PASSWORD_FILE": str(tmp_path / "binary")}).endswith("it is not UTF-8 text")


def test_a_setting_that_is_no_secret_has_no_file_variant(read):
    """It is told as unknown, not silently left out."""
    (warning,) = read({"STREAMQ_APP_FILE": "/x"}).warnings
    assert warning.startswith("STREAMQ_APP_FILE from the environment is not a setting")


def test_no_secret_is_shown_anywhere(read):
    """Neither in the representation, nor in the list, nor in a message about it."""
    environ = {
        "REDIS_PASSWORD": "s3cret",
        "MONGODB_URL": "mongodb://ann:s3cret@h1:27017,h2/?tlsCertificateKeyFilePassword=s3cret",
        "STREAMQ_API_TOKEN": "s3cret",
    }
    settings = read(environ)
    assert "s3cret" in settings.redis_url
    assert "s3cret" not in repr(settings) + str(describe(settings))
    assert "api_token='***'" in repr(settings)
    assert Settings().api_token == {row.name: row.value for row in describe(Settings())}["api_token"] == ""


@pytest.mark.parametrize("url", ["http://:s3cret@h", "redis://:s3cret/x@h", "redis://:s3cret@h:0"])
def test_a_refused_address_is_shown_without_its_password(refusal, url):
    """The message about a wrong password must not print it."""
    message = refusal({"REDIS_URL": url})
    assert "REDIS_URL from the environment is '" in message
    assert "s3cret" not in message


# What is refused


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"WORKER_CONCURRENCY": "three"},
            "WORKER_CONCURRENCY from the environment is 'three': "
            "expected a whole number from 1 to 10000, for example WORKER_CONCURRENCY=3",
        ),
        (
            {"STREAMQ_MAX_DEPTH": "-1"},
            "STREAMQ_MAX_DEPTH from the environment is '-1': expected a whole number, 0 or more",
        ),
        (
            {"STREAMQ_HISTORY": "ja"},
            "STREAMQ_HISTORY from the environment is 'ja': expected true or false, for example STREAMQ_HISTORY=true",
        ),
        (
            {"STREAMQ_SLOW_SHARE": "nan"},
            "STREAMQ_SLOW_SHARE from the environment is 'nan': "
            "expected a number from 0 to 1, for example STREAMQ_SLOW_SHARE=0.5",
        ),
        (
            {"STREAMQ_LOG_LEVEL": "loud"},
            "STREAMQ_LOG_LEVEL from the environment is 'loud': "
            "expected one of debug, info, warning, error, for example STREAMQ_LOG_LEVEL=info",
        ),
        (
            {"STREAMQ_QUEUES": "a,b c"},
            "STREAMQ_QUEUES from the environment is 'a,b c': expected names separated by commas, "
            "each of 1 to 64 letters, digits, '_', '.' or '-', for example STREAMQ_QUEUES=default",
        ),
        (
            {"STREAMQ_MONGODB_DATABASE": "a/b"},
            "STREAMQ_MONGODB_DATABASE from the environment is 'a/b': expected 1 to 63 characters, "
            "none of them / \\ . $ a quote or a space, for example STREAMQ_MONGODB_DATABASE=streamq",
        ),
        (
            {"REDIS_HOST": "cache:6379"},
            "REDIS_HOST from the environment is 'cache:6379': expected the name of a host alone; "
            "a whole address is a REDIS_URL, for example REDIS_HOST=127.0.0.1",
        ),
        (
            {"REDIS_PORT": "99999"},
            "REDIS_PORT from the environment is '99999': "
            "expected a whole number from 1 to 65535, for example REDIS_PORT=6379",
        ),
        (
            {"REDIS_URL": "localhost:6379"},
            "REDIS_URL from the environment is 'localhost:6379': "
            "expected redis://, rediss:// (TLS) or unix://, as in redis://127.0.0.1:6379/0",
        ),
    ],
)
def test_a_refused_value_is_named_as_the_user_named_it(refusal, environ, message):
    """Name, place, what came, what was expected, how to write it."""
    assert refusal(environ) == message


def test_a_flag_is_refused_by_its_own_name(refusal):
    """Nobody typed STREAMQ_WORKER_CONCURRENCY."""
    assert refusal(worker_concurrency=0) == (
        "--concurrency is '0': expected a whole number from 1 to 10000, for example --concurrency 3"
    )


def test_a_value_of_another_type_in_pyproject_is_refused(refusal):
    """TOML's own types are not bent into ours."""
    assert refusal(pyproject="[tool.streamq]\napp = 3") == "app from pyproject.toml is '3': expected text"


def test_everything_wrong_is_told_at_once(refusal):
    """One start, one list: not one error a start."""
    message = refusal({"WORKER_CONCURRENCY": "0"}, dot_env="REDIS_PORT=x", pyproject="[tool.streamq]\nmax_depth = 'y'")
    first, *rest = message.splitlines()
    assert first == "3 settings cannot be used"
    assert [line.split(" is ")[0] for line in rest] == [
        "WORKER_CONCURRENCY from the environment",
        "max_depth from pyproject.toml",
        "REDIS_PORT from .env",
    ]


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"STREAMQ_BEAT_MS": "5000"},
            "beat_ms (5000, STREAMQ_BEAT_MS from the environment) must be less than dead_after_ms (5000, default): "
            "a worker would be given up between two of its beats",
        ),
        (
            {"STREAMQ_LEASE_MS": "3000"},
            "dead_after_ms (5000, default) must be less than lease_ms (3000, STREAMQ_LEASE_MS from the environment): "
            "a delivery would be taken from a worker that is not given up",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(refusal, environ, message):
    """Each is fine alone; together, healthy workers would lose their jobs."""
    assert refusal(environ) == message


def test_a_pyproject_that_is_not_toml_is_told_with_the_place_in_it(refusal):
    """It is named even when everything else is fine."""
    message = refusal(pyproject="[tool.streamq\n")
    assert message.startswith("pyproject.toml is not TOML: ")
    assert "line 1" in message


@pytest.mark.parametrize("text", ["tool = 3", "[tool]\nstreamq = 'x'"])
def test_our_table_in_pyproject_must_be_a_table(refusal, text):
    """A string in its place sets nothing."""
    assert refusal(pyproject=text).endswith("in pyproject.toml is not a table: settings stand under [tool.streamq]")


def test_a_dot_env_that_cannot_be_read_is_told(refusal, tmp_path):
    """A folder or a binary file of that name is a mistake, not an empty place."""
    (tmp_path / ".env").write_bytes(b"A=\xff")
    assert refusal() == ".env cannot be read: it is not UTF-8 text"
    (tmp_path / ".env").unlink()
    (tmp_path / ".env").mkdir()
    assert refusal() == ".env cannot be read: Is a directory"


def test_a_value_in_the_program_is_named_as_it_stands_there(tmp_path):
    """`StreamQ(worker_concurrency=0)` has no `--concurrency` to look for."""
    with pytest.raises(ConfigurationError, match=r"^worker_concurrency in the program is '0': .*=3$"):
        load({"worker_concurrency": 0}, environ={}, directory=tmp_path, in_code=True)
    settings = load({"worker_concurrency": 5}, environ={}, directory=tmp_path, in_code=True)
    assert settings.sources["worker_concurrency"] == "worker_concurrency in the program"


def test_a_flag_that_is_no_setting_is_a_mistake_of_the_program(read):
    """`StreamQ(redis_ulr=...)` must not be silently without effect."""
    with pytest.raises(TypeError, match="'redis_ulr' is not a setting: did you mean redis_url"):
        read(redis_ulr="redis://h")


# What is only told


def test_an_unknown_variable_is_told_with_the_nearest_name(read):
    """A typo in a name has no effect at all, which is worse than an error."""
    warnings = read({"STREAMQ_WORKER_CONCURENCY": "3"}, dot_env="STREAMQ_XYZZY=1").warnings
    assert warnings == (
        "STREAMQ_WORKER_CONCURENCY from the environment is not a setting: did you mean STREAMQ_WORKER_CONCURRENCY?",
        "STREAMQ_XYZZY from .env is not a setting",
    )


def test_an_unknown_key_of_pyproject_is_told_with_the_nearest_name(read):
    """The same for the table."""
    (warning,) = read(pyproject="[tool.streamq]\nmax_dept = 1").warnings
    assert warning == "max_dept from pyproject.toml is not a setting: did you mean max_depth?"


def test_a_line_of_dot_env_that_cannot_be_read_is_told_by_number(read):
    """The rest of the file is used."""
    settings = read(dot_env="WORKER_CONCURRENCY=4\nthis is no line\nWORKER_INSTANCES=5\n")
    assert settings.warnings == ("line 2 of .env is not NAME=value and was left out",)
    assert settings.worker_instances == 5


def test_variables_of_the_tests_and_the_embedded_servers_are_not_told(read):
    """They are known, only not settings."""
    names = ("STREAMQ_TEST_REDIS_URL", "STREAMQ_MONGOD", "STREAMQ_DEBUG", "STREAMQ_PARENT_FD", "STREAMQ_API_TOKEN_FILE")
    environ = dict.fromkeys(names[:-1], "x") | {names[-1]: __file__}
    assert read(environ).warnings == ()


# Addresses


@pytest.mark.parametrize(
    "url",
    [
        "redis://h", "redis://h:1", "redis://h:65535/15", "redis://:pw@h/0", "redis://u:p%40@h:6379/0?timeout=1",
        "redis://:p%2C@a:1,b:2,[::1]:3/0", "redis://a,b", "rediss://h:6380", "redis://[::1]:6379", "unix:///run/r.sock", "unix://u:p@/run/r.sock?db=1",
    ],
)  # fmt: skip
def test_addresses_of_redis_that_can_be_one(url):
    """What redis-py takes, we take."""
    assert fault_of_redis_url(url) == ""


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://h", "redis://, rediss:// (TLS)"),
        ("cache", "redis://, rediss:// (TLS)"),
        ("redis:h", "redis://, rediss:// (TLS)"),
        ("redis://", "the name of a host"),
        ("redis://:6379/0", "the name of a host"),
        ("redis://h:0", "the name of a host"),
        ("redis://h:x", "a port from 1 to 65535"),
        ("redis://h:65536", "a port from 1 to 65535"),
        ("redis://:a/b@h", "percent-encoded"),
        ("redis://[::1", "a host"),
        ("redis://h/one", "the number of a database"),
        ("redis://a:1,b:x/0", "a port from 1 to 65535"),
        ("redis://a:1,/0", "the name of a host"),
        ("redis://a:1,b:2/3", "database 0, which is the only one of a cluster"),
        ("unix://", "the path of a socket"),
    ],
)
def test_addresses_of_redis_that_cannot_be_one(url, fault):
    """redis-py would take database 0 for `/one`, without a word."""
    assert fault in fault_of_redis_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://h", "mongodb://h:27017/", "mongodb://a:1,b:2/x?replicaSet=r", "mongodb://u:p@[::1]:27017",
        "mongodb://%2Frun%2Fmongodb.sock/", "mongodb+srv://u:p@db.example.org/x",
    ],
)  # fmt: skip
def test_addresses_of_mongodb_that_can_be_one(url):
    """What pymongo takes, we take."""
    assert fault_of_mongodb_url(url) == ""


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("redis://h", "mongodb:// or mongodb+srv://"),
        ("h:27017", "mongodb:// or mongodb+srv://"),
        ("mongodb://", "names of hosts"),
        ("mongodb://a,,b", "names of hosts"),
        ("mongodb://h:99999", "names of hosts"),
        ("mongodb://u:p/w@h", "percent-encoded"),
        ("mongodb+srv://h:27017", "one host without a port"),
        ("mongodb+srv://a,b", "one host without a port"),
    ],
)
def test_addresses_of_mongodb_that_cannot_be_one(url, fault):
    """Pymongo's own words for these name neither the setting nor the place."""
    assert fault in fault_of_mongodb_url(url)


@given(user=st.text(min_size=1), password=st.text(min_size=1))
def test_any_password_survives_being_put_into_an_address(user, password):
    """Passwords hold every character there is."""
    from urllib.parse import unquote, urlsplit

    url = with_credentials("redis://h:6379/0", user, password)
    parts = urlsplit(url)
    assert fault_of_redis_url(url) == ""
    assert (unquote(parts.username or ""), unquote(parts.password or "")) == (user, password)
    assert (parts.hostname, parts.port, parts.path) == ("h", 6379, "/0")


# The table


def test_every_setting_says_what_it_is_and_what_was_expected():
    """Help texts and messages are made from the table."""
    for name in SETTINGS:
        known = spec(name)
        assert known.description
        assert known.expected
        assert known.variables[0] == "STREAMQ_" + name.upper()
        assert known.flag.startswith("--") or name == "app"


def test_every_default_is_a_value_that_would_be_accepted(read):
    """A default that its own bounds refuse could not be written down by anybody."""
    defaults = {row.variables[0]: row.default for row in SETTINGS.values() if row.default not in ("", None)}
    environ = {name: ",".join(value) if isinstance(value, tuple) else str(value) for name, value in defaults.items()}
    settings = read(environ)
    assert all(getattr(settings, name) == known.default for name, known in SETTINGS.items())


def test_the_list_has_a_row_for_every_setting_in_order():
    """`streamq config show` leaves nothing out."""
    rows = describe(Settings(worker_concurrency=5))
    assert [row.name for row in rows] == list(SETTINGS)
    assert rows[5] == ("worker_concurrency", "5", "the program")
    assert rows[0].source == "default"


def test_settings_do_not_change():
    """One value for the whole life of a process."""
    with pytest.raises(AttributeError):
        Settings().worker_concurrency = 5  # type: ignore[misc]


def test_the_levels_are_those_of_the_table():
    """The words of the message are the words that are taken."""
    from streamq.logs import LogLevel

    assert spec("log_level").expected == "one of " + ", ".join(get_args(LogLevel))
