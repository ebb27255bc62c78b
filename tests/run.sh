#!/usr/bin/env bash
# Run the tests: run.sh WORKERS [pytest's arguments]. What fails beside others is run once more, alone, and what fails so
# too once again: these are real servers with real deadlines, and a machine that does other work at the same time is not
# what is tested. What was run again is named; a test that fails three times has failed.
set -uo pipefail

workers=$1
shift
environment=$(tests/runtime_env.sh) || exit
eval "$environment"
pytest -n "$workers" --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered "$@"
status=$?
for which in "what failed beside others" "what failed alone"; do
  ((status == 1 && workers > 0)) || break
  echo "── Once more, alone: $which"
  pytest -n 0 --last-failed --last-failed-no-failures none --maxfail 5
  status=$?
done
exit "$status"
