#!/bin/sh
# Finds Python 3.11 to 3.13 and hands over to setup_studio.py: ./setup.sh, ./setup.sh --test, ./setup.sh --demo.
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 1

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1
}

if [ -n "$PYTHON" ]; then
    fits "$PYTHON" && exec "$PYTHON" "$here/setup_studio.py" "$@"
    echo "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13." >&2
    exit 1
fi

for name in python3 python3.13 python3.12 python3.11 python; do
    if command -v "$name" >/dev/null 2>&1 && fits "$name"; then
        exec "$name" "$here/setup_studio.py" "$@"
    fi
done

echo "Python 3.11, 3.12 or 3.13 was not found. Install it, then run this again:" >&2
if [ "$(uname -s)" = Darwin ]; then
    echo "    brew install python@3.13" >&2
elif command -v apt-get >/dev/null 2>&1; then
    echo "    sudo apt-get update && sudo apt-get install -y python3 python3-venv" >&2
    echo "(on Ubuntu 22.04, whose Python is older: sudo apt-get install -y python3.11 python3.11-venv)" >&2
elif command -v dnf >/dev/null 2>&1; then
    echo "    sudo dnf install -y python3.13" >&2
elif command -v pacman >/dev/null 2>&1; then
    echo "    sudo pacman -S --needed python    (or python312 from the AUR if that is newer than 3.13)" >&2
elif command -v zypper >/dev/null 2>&1; then
    echo "    sudo zypper install -y python313" >&2
else
    echo "    from your system's packages, or from python.org" >&2
fi
echo "If it is installed under another name: PYTHON=/path/to/python ./setup.sh" >&2
exit 1
