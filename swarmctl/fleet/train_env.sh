#!/bin/sh
# Makes a training environment: train_env.sh FOLDER LOCK…   (files of `pip --require-hashes`)
#
# uv where the host has it (it links what it has fetched before, so that a second environment takes seconds), else
# python3's own venv and pip. Cut anywhere, the next run goes on: what is installed is not installed again, and
# `.complete` is written last. Exit status 4: a tool is missing (its name on stderr).
set -u
umask 077
folder=$1
shift
[ ! -f "$folder/.complete" ] || exit 0
PATH=$PATH:$HOME/.local/bin:$HOME/.cargo/bin:/opt/homebrew/bin:/usr/local/bin
export PATH
mkdir -p "$folder" || exit 1

python=
for each in python3.11 python3.12 python3.13 python3; do
    if "$each" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; then
        python=$each
        break
    fi
done
[ -n "$python" ] || {
    echo "Python 3.11, 3.12 or 3.13" >&2
    exit 4
}
for lock in "$@"; do
    shift
    set -- "$@" -r "$lock"
done
if command -v uv >/dev/null; then
    echo "stage installing with uv"
    [ -x "$folder/bin/python" ] || uv venv --quiet --python "$python" "$folder" --allow-existing || exit 1
    uv pip install --python "$folder/bin/python" --require-hashes "$@" 2>&1 || exit 1
else
    echo "stage installing with pip"
    [ -x "$folder/bin/pip" ] || "$python" -m venv "$folder" || {
        echo "python3-venv (Debian and Ubuntu ship it apart)" >&2
        exit 4
    }
    "$folder/bin/python" -m pip install --disable-pip-version-check --progress-bar off --require-hashes "$@" || exit 1
fi
echo "stage looking whether it works"
"$folder/bin/python" -c 'import torch, transformers, trl, peft, datasets' || exit 1
: >"$folder/.complete"
