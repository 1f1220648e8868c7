#!/usr/bin/env bash
# Train, evaluate and predict on this machine; everything it needs is installed into .venv first.
#
#   bash launch/local.sh                                   the quickstart
#   bash launch/local.sh --config configs/nyu_mix6.py ...  any other run
#
# JDEPTH_EXTRAS=cuda12 (or cuda13, tpu) installs jax for that accelerator.
set -euo pipefail
. "$(dirname "$0")/environment.sh" "${JDEPTH_EXTRAS:-test}"
case " $* " in
*" --config "* | *" --config="* | *" --help "*) ;;
*) set -- --config configs/quickstart.py "$@" ;;
esac
exec "$PYTHON" -m jdepth.main "$@"
