"""From the words `module:attribute` to the application they name.

The module is the user's: whatever it does when it is imported, the message must lead to the line that did it.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from streamq.app import StreamQ
from streamq.errors import ConfigurationError, StreamQError

if TYPE_CHECKING:
    from types import ModuleType

    from streamq.settings import Settings

__all__ = ["check_app_path", "load_app", "load_with_settings", "with_queues_of"]

_APP_PATH = re.compile(r"(?P<module>\w+(\.\w+)*)(:(?P<attribute>\w+(\.\w+)*))?")


def load_app(path: str) -> StreamQ:
    """Import an application.

    The current folder is put on the module path first, as `python -m` does.

    Args:
        path: `module`, if it holds just one StreamQ, or `module:attribute`.

    Raises:
        ConfigurationError: There is no such module or attribute, it is no StreamQ, there are several, or the module
            cannot be imported.
    """
    parts = check_app_path(path)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module = _imported(parts["module"])
    return _attribute(module, parts["attribute"]) if parts["attribute"] else _only_app(module)


def load_with_settings(settings: Settings) -> tuple[StreamQ, Settings]:
    """Import the application that the settings name, and settle with it what holds.

    What was said on the command line wins over what the program says itself, as in `StreamQ(redis_url=...)`, and that
    over the rest. Without a word about queues, all queues of the application are meant.

    Returns:
        The application, and the settings that it has from now on.

    Raises:
        ConfigurationError: As `load_app`.
    """
    app = load_app(settings.app)
    told = {name: getattr(settings, name) for name, source in settings.sources.items() if source.startswith("--")}
    sources = app.settings.sources | {name: settings.sources[name] for name in (*told, "app")}
    changes = {**told, "app": settings.app, "sources": sources, "warnings": settings.warnings}
    app.settings = with_queues_of(msgspec.structs.replace(app.settings, **changes), app)
    return app, app.settings


def with_queues_of(settings: Settings, app: StreamQ) -> Settings:
    """Put all queues of the application into the settings, unless somebody has said which."""
    queues = tuple(sorted({spec.queue for spec in app.registry}))
    if not queues or settings.sources.get("queues", "default") != "default":
        return settings
    return msgspec.structs.replace(settings, queues=queues)


def check_app_path(path: str) -> re.Match[str]:
    """Take the name of an application apart into `module` and `attribute`, without importing anything.

    Raises:
        ConfigurationError: It names none, whatever the module holds.
    """
    if not path:
        raise ConfigurationError(
            "no application is named", hint="name it on the command line, as in shop.tasks:app, or set STREAMQ_APP"
        )
    if path.endswith(".py") or "/" in path:
        module = path.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigurationError(f"{path!r} is a file; an application is named by its module", hint=f"write {module}")
    parts = _APP_PATH.fullmatch(path)
    if parts is None:
        raise ConfigurationError(f"{path!r} does not name an application", hint="write module:attribute")
    return parts


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except StreamQError:
        raise  # says what is wrong better than the line that met it
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _import_failure(name, error) from error
        raise ConfigurationError(
            f"there is no module {error.name!r}, in {Path.cwd()} or among the installed packages",
            hint="start in the folder that holds it, or install it",
        ) from error
    except (Exception, SystemExit) as error:  # whatever the user's module does
        raise _import_failure(name, error) from error


def _import_failure(name: str, error: BaseException) -> ConfigurationError:
    """Tell what an import stumbled over, and the line of the user's that did it."""
    what = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    lines = [f"module {name!r} cannot be imported: {what}"]
    if isinstance(error, SyntaxError):
        lines.append(f"{error.filename}, line {error.lineno}: {(error.text or '').strip()}")
    elif frames:
        lines.append(f"{frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}")
    return ConfigurationError("\n".join(lines), hint=f"python -c 'import {name}' shows the whole traceback")


def _is_users(filename: str) -> bool:
    return not filename.startswith("<frozen") and filename not in (__file__, importlib.__file__)


def _attribute(module: ModuleType, attribute: str) -> StreamQ:
    value: object = module
    for name in attribute.split("."):
        if not hasattr(value, name):
            known = sorted(_apps(module)) or difflib.get_close_matches(name, dir(value), n=1)
            raise ConfigurationError(
                f"module {module.__name__!r} has no {attribute!r}",
                hint=f"it has {' and '.join(known)}" if known else "define it there: app = StreamQ()",
            )
        value = getattr(value, name)
    if not isinstance(value, StreamQ):
        raise ConfigurationError(
            f"{module.__name__}:{attribute} is of type {type(value).__name__}, not a StreamQ",
            hint="name the object that handlers are registered on",
        )
    return value


def _only_app(module: ModuleType) -> StreamQ:
    apps = _apps(module)
    if not apps:
        raise ConfigurationError(
            f"module {module.__name__!r} holds no StreamQ", hint="define it there: app = StreamQ()"
        )
    if len({id(app) for app in apps.values()}) > 1:
        names = sorted(apps)
        raise ConfigurationError(
            f"module {module.__name__!r} holds several StreamQ objects: {', '.join(names)}",
            hint=f"say which, as in {module.__name__}:{names[0]}",
        )
    return next(iter(apps.values()))


def _apps(module: ModuleType) -> dict[str, StreamQ]:
    return {name: value for name, value in vars(module).items() if isinstance(value, StreamQ)}
