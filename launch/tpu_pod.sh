#!/usr/bin/env bash
# Runs commands on a Cloud TPU slice of any number of workers.
usage() {
  cat <<'HELP'
Usage: launch/tpu_pod.sh ACTION --name=NAME --zone=ZONE [FLAGS] [-- COMMAND]

Actions
  create     request the slice and wait until it is there (it costs from then on)
  setup      copy the committed project to all workers, install it, mount --bucket
  run        run COMMAND on all workers and show worker 0's output; the command
             goes on when this connection breaks
  attach     show the output of a running command again, and wait for it
  stop       end the command on all workers
  supervise  all of it: create what is missing, set up, run; after a preemption
             or a failure again, up to --restarts times; where the command runs
             already, it is attached to
  status     the state of the slice
  logs       write each worker's output to --output/NUMBER.log
  fetch      copy --path of the bucket to --output
  delete     delete the slice (nothing else ends the costs)

Flags
  --name=NAME          of the slice
  --zone=ZONE          such as us-west4-a
  --project=PROJECT    if not gcloud's default
  --type=TYPE          accelerator type, such as v5litepod-16 (create, supervise)
  --version=VERSION    runtime version; known for v4, v5e, v5p and v6e
  --spot               cheaper, can be preempted
  --queued             as a queued resource: waits for capacity
  --create_flag=FLAG   one more flag for gcloud's create; may be repeated
  --bucket=BUCKET      name of a Cloud Storage bucket with hierarchical
                       namespace; seen as ~/bucket on every worker
  --path=PATH          folder in the bucket (fetch)
  --output=DIR         folder on this machine (logs, fetch)
  --restarts=N         of supervise; default 10
  --dry_run            print every gcloud command, run none

Example
  launch/tpu_pod.sh supervise --name=ppl --zone=us-west4-a --type=v5litepod-16 \
    --spot --queued --bucket=MY-BUCKET -- \
    python -m ppl_jax.main --config=configs/quickstart.py --workdir='~/bucket/runs/pod'
HELP
}
set -euo pipefail

readonly LOST=255 # of ssh: the connection broke, the command did not
worker=ppl_jax/launch/worker.sh
poll=${TPU_POD_POLL:-30} # seconds between looks at a queue

say() { echo "tpu_pod.sh: $*" >&2; }

die() {
  echo "error: $*" >&2
  exit 2
}

parse() {
  [[ $# -gt 0 ]] || { usage; exit 2; }
  case $1 in -h | --help | help) usage; exit 0 ;; esac
  action=$1
  name='' zone='' project='' type='' version='' bucket='' path='' output=''
  restarts=10 spot=false queued=false dry_run=false create_flags=() command=()
  shift
  while [[ $# -gt 0 ]]; do
    case $1 in
      --name=* | --zone=* | --project=* | --type=* | --version=* | --bucket=* | --path=* | --output=* | --restarts=*)
        local flag=${1#--}
        printf -v "${flag%%=*}" '%s' "${flag#*=}"
        ;;
      --create_flag=*) create_flags+=("${1#*=}") ;;
      --spot) spot=true ;;
      --queued) queued=true ;;
      --dry_run) dry_run=true ;;
      -h | --help) usage; exit 0 ;;
      --)
        shift
        command=("$@")
        break
        ;;
      --name | --zone | --project | --type | --version | --bucket | --path | --output | --restarts | --create_flag)
        die "A flag's value must follow an equals sign, got $1. Write $1=VALUE."
        ;;
      *) die "Flags must be those of --help, and the command must follow --, got '$1'." ;;
    esac
    shift
  done
}

needs() { # names of flags
  local flag
  for flag; do
    [[ -n ${!flag} ]] || die "$action needs --$flag. See launch/tpu_pod.sh --help."
  done
}

check() {
  case $action in
    create | setup | run | attach | stop | supervise | status | logs | fetch | delete) ;;
    *) die "The action must be one of --help, got '$action'." ;;
  esac
  needs name zone
  [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "--name must be small letters, digits and hyphens, 40 at most, a letter first, got '$name'."
  [[ $restarts =~ ^[0-9]+$ ]] || die "--restarts must be a number, got '$restarts'."
  bucket=${bucket#gs://}
  bucket=${bucket%/}
  [[ $bucket != */* ]] || die "--bucket must be a bucket's name without a folder, got '$bucket'. Use --path for the folder."
  case $action in create | supervise)
    needs type
    [[ -n $version ]] || version=$(known_version)
    ;;
  esac
  case $action in
    logs) needs output ;;
    fetch) needs bucket path output ;;
    run | supervise)
      [[ ${#command[@]} -gt 0 ]] || die "$action needs a command after --, such as: -- python -m ppl_jax.main --config=..."
      ;;
  esac
  case $action in
    run | supervise) ;;
    *) [[ ${#command[@]} -eq 0 ]] || die "$action takes no command, got '${command[*]}'. Use run or supervise." ;;
  esac
  $dry_run || command -v gcloud >/dev/null ||
    die "gcloud must be installed, and is not. See https://cloud.google.com/sdk/docs/install"
}

known_version() {
  case $type in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) die "The runtime version is not known for --type=$type. Name it with --version; gcloud compute tpus tpu-vm versions list --zone=$zone lists them." ;;
  esac
}

# Runs gcloud, or prints the command as it can be pasted into a shell.
cloud() {
  if $dry_run; then
    printf 'gcloud'
    printf ' %q' "$@"
    echo
  else
    gcloud "$@"
  fi
}

tpu() { # service, verb, arguments: within the zone and project
  cloud compute tpus "$1" "$2" "${@:3}" "--zone=$zone" ${project:+"--project=$project"}
}

on_workers() { # which, a command of worker.sh and its arguments
  local which=$1 line
  shift
  printf -v line ' %q' "$@"
  tpu tpu-vm ssh "$name" "--worker=$which" "--command=bash $worker$line" ${ssh_flags[@]+"${ssh_flags[@]}"}
}
ssh_flags=() # an empty array is unbound for the bash of macOS: hence the +

state_of() { # tpu-vm or queued-resources: prints the state, nothing if there is none
  local key=state
  [[ $1 == tpu-vm ]] || key=state.state
  local found
  found=$(tpu "$1" list "--filter=name~\"(^|/)$name\$\"" "--format=value($key)") || return
  if $dry_run; then echo "$found" >&3; else echo "$found"; fi
}

# A function called with || runs on after an error in it: hence `|| return`.
create() {
  local more=(${create_flags[@]+"${create_flags[@]}"})
  ! $spot || more+=(--spot)
  if $queued; then
    tpu queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" \
      "--runtime-version=$version" ${more[@]+"${more[@]}"} || return
    wait_in_queue || return
  else
    tpu tpu-vm create "$name" "--accelerator-type=$type" "--version=$version" \
      ${more[@]+"${more[@]}"} || return
  fi
  say "$name costs from now on, also when idle, until: launch/tpu_pod.sh delete --name=$name --zone=$zone${project:+ --project=$project}$($queued && echo ' --queued')"
}

wait_in_queue() {
  local state='' last=none
  while true; do
    state=$(state_of queued-resources) || return
    ! $dry_run || return 0
    [[ $state == "$last" ]] || say "$name is ${state:-gone} in the queue"
    last=$state
    case $state in
      ACTIVE) return 0 ;;
      '' | FAILED | SUSPENDING | SUSPENDED)
        say "The request must become ACTIVE, and is ${state:-gone}. gcloud compute tpus queued-resources describe $name --zone=$zone says why; delete it before another try."
        return 1
        ;;
    esac
    sleep "$poll"
  done
}

setup() {
  local archive
  archive=$(mktemp -d)/ppl_jax.tar.gz
  if ! $dry_run; then
    local root
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    [[ -z $(git -C "$root" status --porcelain) ]] ||
      say "The workers get what is committed; there are changes that are not."
    git -C "$root" archive --format=tar.gz --output="$archive" HEAD || return
  fi
  tpu tpu-vm scp "$archive" "$name:ppl_jax.tar.gz" --worker=all || return
  rm -r "$(dirname "$archive")"
  local line
  printf -v line '%q' "$bucket"
  tpu tpu-vm ssh "$name" --worker=all \
    "--command=if [ -f $worker ] && bash $worker busy; then echo 'error: a command is running here. Stop it with tpu_pod.sh stop.' >&2; exit 1; fi; rm -rf ppl_jax && mkdir ppl_jax && tar -xzf ppl_jax.tar.gz -C ppl_jax && bash $worker setup $line"
}

run() {
  on_workers all start "$(date +%Y%m%d-%H%M%S)-$$" "${command[@]}" || return
  attach
}

attach() {
  local status=0
  on_workers 0 follow || status=$?
  [[ $status == 0 ]] && { on_workers all wait || status=$?; }
  if [[ $status == "$LOST" ]]; then
    say "The connection broke. If the slice is still there the command goes on: attach shows it, stop ends it."
  fi
  return "$status"
}

stop() { on_workers all stop; }

delete() {
  if $queued; then
    tpu queued-resources delete "$name" --force --quiet
  else
    tpu tpu-vm delete "$name" --quiet
  fi
}

# Deletes what a preemption left, and creates and sets up the slice anew.
replace() {
  local left=$1
  if $queued; then left=$(state_of queued-resources) || return; fi
  case $left in
    '') create || return ;;
    ACCEPTED | CREATING | PROVISIONING | WAITING_FOR_RESOURCES)
      $queued || die "$name is $left. Wait until it is READY, or delete it."
      wait_in_queue || return
      ;;
    *)
      say "$name is $left: deleting it"
      delete || return
      create || return
      ;;
  esac
  setup
}

supervise() {
  local state status restart=0 attached=false
  state=$(state_of tpu-vm) || return
  if [[ $state != READY ]]; then
    replace "$state" || return
  else
    status=1
    $dry_run || { status=0; on_workers 0 busy || status=$?; }
    case $status in
      0)
        say "A command is running there: this goes on with it. To give another, end it first with tpu_pod.sh stop."
        attached=true
        ;;
      "$LOST") return "$status" ;;
      *) setup || return ;;
    esac
  fi
  while true; do
    status=0
    if $attached; then attach || status=$?; else run || status=$?; fi
    [[ $status != 0 ]] || return 0
    ((restart++ < restarts)) || {
      say "Gave up after $restarts restarts. $name is still there and costs."
      return "$status"
    }
    until state=$(state_of tpu-vm); do # as when the network is away
      ((restart++ < restarts)) || {
        say "Gave up: gcloud does not say what became of $name. If it is still there it costs."
        return "$status"
      }
      sleep "$poll"
    done
    say "Ended with status $status, the slice is ${state:-gone}. Restart $restart of $restarts."
    attached=false
    if [[ $state != READY ]]; then
      replace "$state" || return
    elif [[ $status == "$LOST" ]]; then
      attached=true
    else
      stop || say "The command could not be stopped; the next start will say so."
    fi
  done
}

status() {
  ! $queued || tpu queued-resources describe "$name"
  tpu tpu-vm describe "$name"
}

logs() {
  $dry_run || mkdir -p "$output"
  ssh_flags=("--output-directory=$output")
  on_workers all log
}

fetch() {
  $dry_run || mkdir -p "$output"
  cloud storage rsync --recursive "gs://$bucket/${path#/}" "$output" ${project:+"--project=$project"}
}

parse "$@"
check
exec 3>&1 # where a dry run prints, also from within $(...)
"$action"
