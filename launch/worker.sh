#!/usr/bin/env bash
# What launch/tpu_pod.sh has every worker of a TPU slice do. Nobody else needs it.
#
#   worker.sh setup [BUCKET]     install the project, mount a bucket at ~/bucket
#   worker.sh start ID COMMAND   start a command that outlives the connection
#   worker.sh busy               succeed where a command is running
#   worker.sh follow             show its output until it ends
#   worker.sh wait               wait for it; exit with its status
#   worker.sh stop               end it
#   worker.sh log                print the output of the newest command
#
# gcloud repeats a command whose connection broke (status 255), so all of these
# may be repeated.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
runs=$HOME/ppl_jax_runs
environment=$HOME/ppl_jax_env

die() {
  echo "error: $(hostname): $*" >&2
  exit 1
}

current() { # the id of the newest command
  [[ -f $runs/current ]] || die "No command was started here. Start one with tpu_pod.sh run."
  cat "$runs/current"
}

alive() { # a command's id: is anything left of it?
  local pid
  pid=$(<"$runs/$1.pid")
  kill -0 "$pid" 2>/dev/null || kill -0 -- "-$pid" 2>/dev/null
}

running() { # a command's id
  [[ ! -f $runs/$1.status ]] && alive "$1"
}

setup() {
  local bucket=${1:-}
  if ! command -v uv >/dev/null && [[ ! -x $HOME/.local/bin/uv ]]; then
    curl --fail --silent --show-error --location https://astral.sh/uv/install.sh | sh
  fi
  PATH=$HOME/.local/bin:$PATH
  # The images have an older Python than the project needs.
  [[ -d $environment ]] || uv venv --python=3.11 "$environment"
  uv pip install --python="$environment/bin/python" \
    --constraint="$project/constraints.txt" --editable="${project}[tpu]"
  [[ -n $bucket ]] || return 0
  if ! command -v gcsfuse >/dev/null; then
    local source
    source=gcsfuse-$(lsb_release --codename --short)
    curl --fail --silent --show-error https://packages.cloud.google.com/apt/doc/apt-key.gpg |
      sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
    echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt $source main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update --quiet
    sudo apt-get install --quiet --yes gcsfuse
  fi
  mkdir -p "$HOME/bucket"
  mountpoint --quiet "$HOME/bucket" && return 0
  # Nothing cached about files: a worker must see at once what another wrote.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 \
    --metadata-cache-negative-ttl-secs=0 "$bucket" "$HOME/bucket"
}

start() {
  local id=$1
  shift
  mkdir -p "$runs"
  if [[ -f $runs/current ]]; then
    [[ $(current) != "$id" ]] || return 0
    ! running "$(current)" || die "One command at a time, got a second. Stop the first with tpu_pod.sh stop."
  fi
  cd "$project"
  PATH=$environment/bin:$PATH
  # shellcheck disable=SC2016 # expanded by the bash that runs it
  setsid bash -c '
    runs=$1 id=$2
    shift 2
    status=0
    "$@" || status=$?
    echo "$status" >"$runs/$id.status.new"
    mv "$runs/$id.status.new" "$runs/$id.status"
  ' bash "$runs" "$id" "$@" >"$runs/$id.log" 2>&1 </dev/null &
  echo $! >"$runs/$id.pid"
  echo "$id" >"$runs/current"
}

busy() { [[ -f $runs/current ]] && running "$(current)"; }

follow() {
  local id tail
  id=$(current)
  tail --lines=+1 --sleep-interval=0.1 --follow "$runs/$id.log" &
  tail=$!
  while running "$id"; do sleep 0.2; done
  sleep 0.3 # for the last lines
  kill "$tail"
  wait "$tail" 2>/dev/null || true
}

wait_for() {
  local id status=137 # killed, where it left no status
  id=$(current)
  while running "$id"; do sleep 0.2; done
  [[ ! -f $runs/$id.status ]] || status=$(<"$runs/$id.status")
  [[ $status == 0 ]] && return
  {
    echo "$(hostname): the command ended with status $status. Its last lines:"
    tail --lines=20 "$runs/$id.log"
  } >&2
  [[ $status != 255 ]] || status=1 # gcloud would repeat it
  return "$status"
}

stop() {
  [[ -f $runs/current ]] || return 0
  local id try
  id=$(current)
  alive "$id" || return 0
  kill -TERM -- "-$(<"$runs/$id.pid")" || true
  for ((try = 0; try < 10; try++)); do
    alive "$id" || break
    sleep 0.2
  done
  # A process of a JAX cluster takes SIGTERM as a notice only.
  kill -KILL -- "-$(<"$runs/$id.pid")" 2>/dev/null || true
  [[ -f $runs/$id.status ]] || echo 137 >"$runs/$id.status"
}

case ${1:-} in
  setup | start | busy | follow | stop) "$@" ;;
  wait) wait_for ;;
  log) cat "$runs/$(current).log" ;;
  *) die "The first word must be setup, start, busy, follow, wait, stop or log, got '${1:-}'." ;;
esac
