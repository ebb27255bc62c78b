#!/usr/bin/env bash
# Resolve pyproject.toml anew and write every lock, by hash. One resolution serves them all, so any two locks can be
# installed together. The registry is whatever this machine's settings say: no file names it.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=${UV:-.venv/bin/uv}
common=(--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet)
everything=$(mktemp)
trap 'rm -f "$everything"' EXIT

lock() {  # lock NAME SOURCE…
  local name=$1 target=requirements/$1.txt
  shift
  : >"$target"  # nothing is taken from the old lock; train, qlora and deepspeed are links to those that ship with swarmctl
  "$uv" pip compile "${common[@]}" "$@" -c "$everything" -o "$target" >/dev/null
  printf '%-10s %4d packages\n' "$name" "$(grep -c '==' "$target")"
}

"$uv" pip compile "${common[@]}" --upgrade pyproject.toml --all-extras requirements/bootstrap.in -o "$everything" >/dev/null
lock bootstrap requirements/bootstrap.in
lock control pyproject.toml
for extra in runtime dev train qlora deepspeed embed bench; do
  lock "$extra" pyproject.toml --extra "$extra"
done
