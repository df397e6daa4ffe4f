#!/usr/bin/env bash
#SBATCH --job-name=pfgm_jax --requeue --open-mode=append --output=logs/%x-%j.log --signal=B:TERM@120
# Trains on the GPUs of a Slurm cluster, one process a GPU, and goes on after preemption or the time limit.
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 --time=24:00:00 launch/slurm.sh --config=configs/cifar10.py --workdir=runs/cifar10
#
# The folder from which it is submitted, with its .venv (launch/demo.sh makes one; PFGM_JAX_VENV names another) and
# logs/, and the workdir must be on a disk that all nodes share. Tasks must see all GPUs of their node (no --gpu-bind).
# Before the time limit, or when the cluster wants the nodes, the run saves and the job goes back to the queue.
set -uo pipefail
usage() { sed -n '3,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }
case "${1:---help}" in
-h | --help) usage; exit 0 ;;
--dry-run) shift; dry="echo" ;;
esac
[ -n "${SLURM_JOB_ID:-}${dry:-}" ] || { echo "slurm.sh is for sbatch: sbatch [OPTIONS] launch/slurm.sh $*" >&2; exit 2; }

# The trap comes first: a signal that came before it would end this script, and nothing would be requeued.
trap 'early=1; kill -TERM "$!" 2>/dev/null' TERM
export PFGM_JAX_PROCESS=auto
${dry:-} srun --kill-on-bad-exit=0 "${PFGM_JAX_VENV:-.venv}/bin/python" -m pfgm_jax.main "$@" &
job=$!
[ -z "${early:-}" ] || kill -TERM "$job" 2>/dev/null
wait "$job"
code=$?
while kill -0 "$job" 2>/dev/null; do # a signal ends wait, not the job
    wait "$job"
    code=$?
done
# 143: stopped by SIGTERM, with the state saved. 75: another process was lost.
case "$code" in
143 | 75) exec ${dry:-} scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
