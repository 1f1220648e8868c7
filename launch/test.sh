#!/usr/bin/env bash
# Run the tests; everything they need is installed into .venv first.
#
#   bash launch/test.sh               without PyTorch, without the slow ones
#   bash launch/test.sh --reference   the comparisons with PyTorch
#   bash launch/test.sh --slow        everything
#
# Further arguments go to pytest.
set -euo pipefail
# Two processes, each test file in one of them; the slow tests need the memory for themselves.
extras=test paths="--ignore=tests/reference" marks="not slow" processes="-n 2 --dist loadfile"
case "${1:-}" in
--reference) extras=test,reference paths="tests/reference" && shift ;;
--slow) extras=test,reference paths="tests" marks="" processes="" && shift ;;
esac
. "$(dirname "$0")/environment.sh" "$extras"
exec "$PYTHON" -m pytest -q $paths -m "$marks" $processes "$@"
