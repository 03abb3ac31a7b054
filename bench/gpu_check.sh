#!/usr/bin/env bash
# Everything that a visit to a GPU should find out: correctness first, then the steps, tuning and training.
#   bash bench/gpu_check.sh --minutes 10 [--out DIR] [--data-dir DIR] [--only STAGES] [--epochs N]
#                           [--precision P] [--pack FILE] [--resume] [--small]
# Without --minutes every stage has its eight. STAGES: compile, correctness, step, tune, plan, train, or one of
# them: step-866x128, tune-launches, train-14. --pack: everything found in one archive, after every stage.
# --small: at toy sizes on a CPU. In the environment: PYTHON, where it is not python3; COMMIT, which goes into
# the records where git is not there.
set -euo pipefail
cd "$(dirname "$0")/.."
for word in "$@"; do if [ "$word" = --small ]; then export TRITON_INTERPRET=1; fi; done
exec "${PYTHON:-python3}" -m bench.gpu visit "$@"
