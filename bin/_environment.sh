# Sourced by the programs beside it, with $root set: leaves the environment's interpreter in $python, and makes it if
# there is none for this pyproject.toml in this place. In sh, since to start a Python just to find that there is
# nothing to do would cost more than all the rest.

python=$root/.venv/bin/python

if ! [ -x "$python" ] ||
    [ "$(cat "$root/.venv/made-from" 2>/dev/null)" != "$(printf '%s\n' "$root" && cat "$root/pyproject.toml")" ]; then
    maker=
    for candidate in python3 python3.13 python3.12 python3.11; do
        # Tried rather than looked up: a version manager's stand-in may be on the PATH with nothing behind it.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            maker=$candidate
            break
        fi
    done
    if [ -z "$maker" ]; then
        echo "streamq: no Python 3.11 or newer was found on the PATH: install one (on Debian 12: apt-get install -y python3 python3-venv)" >&2
        exit 69
    fi
    "$maker" "$root/bin/_make_environment.py" || exit
fi
