#!/usr/bin/env bash
# Run the tests: run.sh WORKERS [pytest's arguments]. What fails beside others is run once more, alone: these are real
# servers with real deadlines, and a machine that does other work at the same time is not what is tested. What was run
# twice is named; a test that fails alone has failed.
set -uo pipefail

workers=$1
shift
environment=$(tests/runtime_env.sh) || exit
eval "$environment"
pytest -n "$workers" --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered "$@"
status=$?
((status == 1 && workers > 0)) || exit "$status"
echo "── Once more, alone: what failed beside others"
pytest -n 0 --last-failed --last-failed-no-failures none --maxfail 5
