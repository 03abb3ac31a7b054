#!/usr/bin/env bash
# Everything that a visit to a GPU should find out, a stage a process under 8 minutes; a stage that fails does not end the others.
#   bash bench/gpu_check.sh [--out DIR] [--data-dir DIR] [--only STAGES] [--epochs N] [--precision P] [--pack FILE] [--resume] [--small]
# STAGES: compile,trial,correctness,tune,step,plan,train,merge, or a part of one: step-866x128, tune-launches, train-14.
# --pack: after every stage everything that was found, in one archive, to be taken elsewhere. --small: at toy sizes on a CPU.
# In the environment: PYTHON, where it is not python3; COMMIT, which goes into the records where git is not there.
set -uo pipefail
cd "$(dirname "$0")/.."

out=gpu-check only= pack= small=() data=() resume=() run=()
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2; shift 2 ;;
    --data-dir) data=(--data-dir "$2"); shift 2 ;;
    --only) only=,$2,; shift 2 ;;
    --epochs | --precision) run+=("$1" "$2"); shift 2 ;;
    --pack) pack=$2; shift 2 ;;
    --resume) resume=(--resume); shift ;;
    --small) small=(--small); export TRITON_INTERPRET=1; shift ;;
    *) sed -n 2,6p "$0" >&2; exit 2 ;;
  esac
done

failed=0 python=${PYTHON:-python3}
packed() {
  if [ -n "$pack" ]; then tar --create --gzip --file "$pack" "$out" bench/results fastbn/engine/triton/tuning.json; fi
}
stage() { # its name, then the arguments of bench.gpu
  local name=$1; shift
  if [ -n "$only" ] && [[ $only != *,$name,* ]] && [[ $only != *,${name%%-*},* ]]; then return; fi
  echo "== $name"
  timeout --kill-after=20 480 "$python" -m bench.gpu "$@" --out "$out" "${small[@]}"
  local code=$?
  if [ $code -eq 2 ]; then exit 2; fi
  if [ $code -ne 0 ]; then failed=1; echo "== $name: exit code $code"; fi
  packed
}

stage compile compile
stage trial trial
stage correctness correctness "${resume[@]}"
if [ ${#small[@]} -gt 0 ]; then
  stage step step
  stage step-replicas step --config 866x128-replicas
  stage train-8 train --depth 8 --epochs 1
  stage merge merge --results "$out/results"
else
  mkdir -p "$out/tables"
  for part in rolling launches convolutions; do
    if [ -z "$only" ] || [[ $only == *,tune,* ]] || [[ $only == *,tune-$part,* ]]; then
      echo "== tune-$part"
      timeout --kill-after=20 480 "$python" -m bench.tune --engine triton --only $part --seconds 400 || failed=1
      cp fastbn/engine/triton/tuning.json "$out/tables"
      packed
    fi
  done
  for config in 866x128 110x128 14x128 866x1024 50x256 866x128-replicas 110x128-replicas; do
    stage step-$config step --config $config "${resume[@]}"
  done
  if [ -z "$only" ] || [[ $only == *,plan,* ]]; then
    echo "== plan"
    timeout --kill-after=20 480 "$python" -m bench.plan --depth 866 --batch-size 128 1024 4096 8192 --repeats 1 || failed=1
    packed
  fi
  for depth in 14 110; do
    stage train-$depth train --depth $depth "${data[@]}" "${run[@]}"
  done
  stage merge merge
fi
exit $failed
