#!/usr/bin/env bash
# Run the tests; everything they need is installed into .venv first.
#
#   bash launch/test.sh               without PyTorch, without the slow ones
#   bash launch/test.sh --reference   the comparisons with PyTorch
#   bash launch/test.sh --slow        everything
#
# Further arguments go to pytest. What is skipped is told with its reason (-rs).
set -euo pipefail
# Two processes, each test file in one of them; the slow tests need the memory for themselves. Files keep their order:
# those of few tests, which xdist would start last, are whole runs, and the second process would have nothing left to do.
extras=test paths="--ignore=tests/reference" marks="not slow" processes="-n 2 --dist loadfile --no-loadscope-reorder"
case "${1:-}" in
--reference) extras=test,reference paths="tests/reference" && shift ;;
--slow) extras=test,reference paths="tests" marks="" processes="" && shift ;;
esac
. "$(dirname "$0")/environment.sh" "$extras"
exec "$PYTHON" -m pytest -q -rs $paths -m "$marks" $processes "$@"
