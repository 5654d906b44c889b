"""How an application is found by its name, and what is said when it is not."""

from __future__ import annotations

import sys
import textwrap

import pytest

from streamq.errors import ConfigurationError, StreamQError
from streamq.loading import load_app, load_with_settings
from streamq.settings import load


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Write the module `shop`, in the current folder, and forget it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def shop(source: str, name: str = "shop.py") -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("from streamq.app import StreamQ\n" + textwrap.dedent(source))

    yield shop
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("shop", "other"):
            del sys.modules[name]


def refusal(path: str) -> tuple[str, str]:
    """Load what cannot be loaded; return the message and the hint."""
    with pytest.raises(ConfigurationError) as caught:
        load_app(path)
    return str(caught.value), caught.value.hint


def test_the_only_application_of_a_module_needs_no_name(shop):
    """One name for it or two: it is one application."""
    shop("app = StreamQ()\nalias = app")
    assert load_app("shop") is load_app("shop:app")


def test_an_attribute_may_be_dotted(shop):
    """Applications live in objects, too."""
    shop("class Shop:\n    queue = StreamQ()\nother = StreamQ()")
    assert load_app("shop:Shop.queue") is sys.modules["shop"].Shop.queue


def test_a_module_of_a_package_is_found_from_the_current_folder(shop):
    """`streamq worker shop.tasks` works where `python -m shop.tasks` does."""
    shop("", "shop/__init__.py")
    shop("app = StreamQ()", "shop/tasks.py")
    assert load_app("shop.tasks") is sys.modules["shop.tasks"].app


def test_no_name_at_all_says_both_ways_to_give_one():
    """The first thing that a newcomer types is `streamq worker`."""
    message, hint = refusal("")
    assert message == "no application is named"
    assert hint == "name it on the command line, as in shop.tasks:app, or set STREAMQ_APP"


def test_a_path_of_a_file_is_answered_with_the_module():
    """The shell completes file names, not modules."""
    assert refusal("./shop/tasks.py") == (
        "'./shop/tasks.py' is a file; an application is named by its module", "write shop.tasks",
    )  # fmt: skip


@pytest.mark.parametrize("path", ["shop:", ":app", "shop:app:app", "shop tasks", "shop..tasks"])
def test_words_that_name_nothing_are_refused(path):
    """They are shown as they came."""
    assert refusal(path) == (f"{path!r} does not name an application", "write module:attribute")


def test_a_missing_module_is_named_with_the_place_that_was_searched(shop, tmp_path):
    """Usually the program was started in another folder."""
    message, hint = refusal("shopp.tasks:app")
    assert message == f"there is no module 'shopp', in {tmp_path} or among the installed packages"
    assert hint == "start in the folder that holds it, or install it"


def test_a_module_missing_inside_the_users_is_not_taken_for_it(shop):
    """`shop` is there; what it imports is not."""
    shop("import not_installed\napp = StreamQ()")
    message, hint = refusal("shop")
    first, second = message.splitlines()
    assert first == "module 'shop' cannot be imported: ModuleNotFoundError: No module named 'not_installed'"
    assert second.endswith("shop.py, line 2: import not_installed")
    assert hint == "python -c 'import shop' shows the whole traceback"


def test_an_error_while_importing_leads_to_the_users_line(shop):
    """Not to ours, and not to that of the import machinery."""
    shop("def prices():\n    return 1 / 0\n\nprices()")
    first, second = refusal("shop")[0].splitlines()
    assert first == "module 'shop' cannot be imported: ZeroDivisionError: division by zero"
    assert second.endswith("shop.py, line 3: return 1 / 0")


def test_a_syntax_error_leads_to_its_line(shop):
    """It has no frame of its own."""
    shop("app = StreamQ(\n")
    first, second = refusal("shop")[0].splitlines()
    assert first.startswith("module 'shop' cannot be imported: SyntaxError: ")
    assert second.endswith("shop.py, line 2: app = StreamQ(")


def test_a_module_that_exits_when_imported_does_not_end_the_program(shop):
    """A script without a main guard would look like a clean end."""
    shop("raise SystemExit(0)")
    assert refusal("shop")[0].startswith("module 'shop' cannot be imported: SystemExit: 0")


def test_an_error_of_ours_while_importing_is_told_as_it_is(shop):
    """It names the setting, which the line that met it does not."""
    shop("app = StreamQ(worker_concurrency=0)")
    with pytest.raises(StreamQError, match="expected a whole number from 1"):
        load_app("shop")


def test_a_missing_attribute_is_answered_with_those_there_are(shop):
    """`app` is only a habit."""
    shop("queue = StreamQ()")
    assert refusal("shop:app") == ("module 'shop' has no 'app'", "it has queue")
    shop("", "other.py")
    assert refusal("other:app") == ("module 'other' has no 'app'", "define it there: app = StreamQ()")


def test_an_attribute_that_is_no_application_is_refused_with_its_type(shop):
    """The usual mistake is to name the handler, or the web application."""
    shop("app = {}")
    assert refusal("shop:app")[0] == "shop:app is of type dict, not a StreamQ"


def test_a_module_without_an_application_says_what_to_add(shop):
    """Nothing is made up."""
    shop("x = 1")
    assert refusal("shop") == ("module 'shop' holds no StreamQ", "define it there: app = StreamQ()")


def test_several_applications_must_be_told_apart(shop):
    """Choosing one would be a guess."""
    shop("b = StreamQ()\na = StreamQ()")
    assert refusal("shop") == ("module 'shop' holds several StreamQ objects: a, b", "say which, as in shop:a")


def test_the_command_line_wins_over_the_program_and_that_over_the_environment(shop, monkeypatch):
    """And the application knows what holds: what a handler enqueues goes to the same Redis."""
    shop("app = StreamQ(redis_url='redis://program', worker_concurrency=7)")
    monkeypatch.setenv("REDIS_URL", "redis://environment")
    monkeypatch.setenv("WORKER_INSTANCES", "5")
    app, settings = load_with_settings(load({"app": "shop", "worker_concurrency": 9}))
    assert app.settings is settings
    assert (settings.redis_url, settings.worker_concurrency, settings.worker_instances) == ("redis://program", 9, 5)
    assert (settings.app, settings.sources["worker_concurrency"]) == ("shop", "--concurrency")


def test_without_a_word_about_queues_all_those_of_the_application_are_meant(shop, monkeypatch):
    """A worker that left one out would look healthy while its jobs wait."""
    shop(
        """
        app = StreamQ()

        @app.handler(queue="mail")
        async def mail(): ...

        @app.handler
        async def other(): ...
        """
    )
    assert load_with_settings(load({"app": "shop"}))[1].queues == ("default", "mail")
    monkeypatch.setenv("STREAMQ_QUEUES", "mail")
    del sys.modules["shop"]
    assert load_with_settings(load({"app": "shop"}))[1].queues == ("mail",)
