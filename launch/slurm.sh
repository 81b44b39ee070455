#!/usr/bin/env bash
# Trains on Slurm: one run over all nodes of a job, which goes on after a time
# limit, a preemption, a lost node or a failure. From the project's folder:
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 --time=12:00:00 \
#       launch/slurm.sh --config=configs/quickstart.py --workdir=/shared/runs/1
#
# Flags before launch/slurm.sh are sbatch's and win over those below; flags after
# it are ppl_jax.main's. The workdir must lie on a file system that all nodes see.
# Tasks a node: one, with all GPUs of the node, or one for each GPU; on nodes
# without GPUs one. Ask for GPUs with --gpus-per-node, not with --gpus-per-task:
# JAX counts the GPUs of a node, so every task must see all of them.
#
# Variables, given as in `PPL_JAX_RESTARTS=5 sbatch ...`:
#   PPL_JAX_ENV       virtual environment; default: .venv, if there is one
#   PPL_JAX_RESTARTS  how often to run again in the same job after a failure;
#                     default 3
#   PPL_JAX_SRUN      more flags for srun, split at spaces
#
#SBATCH --job-name=ppl_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
#SBATCH --signal=B:USR1@120
set -euo pipefail

die() {
  echo "error: $*" >&2
  exit 2
}

[[ -n ${SLURM_JOB_ID:-} ]] || die "slurm.sh must run as a Slurm job. Start it with sbatch launch/slurm.sh FLAGS."
cd "${SLURM_SUBMIT_DIR:-.}"
[[ -f ppl_jax/main.py ]] || die "sbatch must be given in the project's folder, got $PWD."
[[ " $*" == *" --workdir="* ]] || die "--workdir=DIR must be given, on a file system that all nodes see."
restarts=${PPL_JAX_RESTARTS:-3}
[[ $restarts =~ ^[0-9]+$ ]] || die "PPL_JAX_RESTARTS must be a number, got '$restarts'."

environment=${PPL_JAX_ENV:-.venv}
if [[ -f $environment/bin/activate ]]; then
  # shellcheck disable=SC1091 # is there only where it is used
  source "$environment/bin/activate"
elif [[ -n ${PPL_JAX_ENV:-} ]]; then
  die "PPL_JAX_ENV must be a virtual environment, got '$environment' without bin/activate."
fi

flags=(--kill-on-bad-exit=1) # one lost task ends the step, and we restart it
gpus=${SLURM_GPUS_ON_NODE:-0}
gpus=${gpus##*:} # some clusters say TYPE:NUMBER
tasks=${SLURM_NTASKS_PER_NODE:-1}
if ((gpus > 0)); then
  flags+=(--gpu-bind=none)
  if ((tasks == 1)); then
    # JAX gives a Slurm task one device unless told.
    JAX_LOCAL_DEVICE_IDS=$(seq --separator=, 0 $((gpus - 1)))
    export JAX_LOCAL_DEVICE_IDS
  elif ((tasks != gpus)); then
    die "--ntasks-per-node must be 1 or the number of GPUs of a node, $gpus, got $tasks."
  fi
elif ((tasks != 1)); then
  die "--ntasks-per-node must be 1 where no GPUs are asked for, got $tasks. Add --gpus-per-node=$tasks, or leave it out."
fi
read -ra more <<<"${PPL_JAX_SRUN:-}"
flags+=(${more[@]+"${more[@]}"})

# Slurm sends USR1 two minutes before the time limit. Preempted jobs and those of
# lost nodes Slurm requeues by itself, and a cancelled one shall stay cancelled.
requeued=false
requeue() {
  echo "slurm.sh: the time limit is near; going on in a new job from the last checkpoint"
  requeued=true
  scontrol requeue "$SLURM_JOB_ID"
}
trap requeue USR1

run() { # in the background, since a trap waits for what is in the foreground
  srun "${flags[@]}" python -m ppl_jax.main "$@" &
  local step=$! status
  while true; do
    status=0
    wait "$step" || status=$?
    kill -0 "$step" 2>/dev/null || return "$status"
  done
}

for ((restart = 0; ; restart++)); do
  status=0
  run "$@" || status=$?
  if [[ $status == 0 ]] || $requeued; then exit "$status"; fi
  echo "slurm.sh: ended with status $status; $((restarts - restart)) restarts left" >&2
  ((restart < restarts)) || exit "$status"
done
