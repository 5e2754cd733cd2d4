#!/usr/bin/env bash
# A run on a Cloud TPU slice of any number of hosts, from a laptop with gcloud. See `tpu_pod.sh help`.
# The Cloud TPU API is in maintenance and does not know TPU7x: where you can choose, take gke_jobset.yaml.
set -euo pipefail

NAME=${NAME:-simclr}                                  # of the slice and of its queued resource
ZONE=${ZONE:-}                                        # for example us-west4-a
PROJECT=${PROJECT:-}                                  # default: gcloud's
TYPE=${TYPE:-v5litepod-32}                            # accelerator type: v5litepod-32, v4-32, v6e-32 ...
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}               # software version that belongs to TYPE
SPOT=${SPOT:-0}                                       # 1: cheaper, and taken away at any time
CONFIG=${CONFIG:-configs/imagenet.py}
WORKDIR=${WORKDIR:-}                                  # gs://BUCKET/runs/imagenet; all hosts write there
PYTHON=${PYTHON:-3.12}                                # the images' own may be older than 3.11
POLL=${POLL:-30}                                      # seconds between two looks at the queue

usage() {
    cat <<'END'
usage: NAME=value ... tools/launch/tpu_pod.sh COMMAND [--config.FIELD=VALUE ...]

  up        create, install and run: also what brings a preempted run back
  create    asks for the slice and waits for it; one that is there is reused
  install   copies this directory to all hosts and installs it with the [tpu] extra
  run       starts the config on all hosts, or goes on with it; the options go to simclr_jax.main
  logs      follows the output of host 0 (WORKER=3: of host 3)
  status    whether each host runs, or the exit code it ended with
  stop      SIGTERM to all hosts: they save, and `run` goes on from that step
  delete    gives the slice back; what is in the bucket stays

variables: ZONE and WORKDIR (gs://...) must be set; NAME=simclr, TYPE=v5litepod-32,
  RUNTIME=v2-alpha-tpuv5-lite, SPOT=0, CONFIG=configs/imagenet.py, PROJECT (gcloud's), PYTHON=3.12

example:
  export ZONE=us-west4-a WORKDIR=gs://BUCKET/runs/imagenet
  tools/launch/tpu_pod.sh up --config.data.data_dir=gs://BUCKET/tfds
END
}

die() {
    echo "error: $*" >&2
    exit 2
}

tpus() { # Command of `gcloud compute tpus`, where this slice is.
    gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}
}

on_hosts() { # hosts command
    tpus tpu-vm ssh "$NAME" --worker="$1" --command="$2"
}

state() { # ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED ...; nothing where there is no such slice.
    tpus queued-resources describe "$NAME" --format='value(state.state)' 2>/dev/null || true
}

create() {
    local now spot=
    [ "$SPOT" = 0 ] || spot=--spot
    now=$(state)
    case $now in
        FAILED | SUSPENDED) # a preempted slice: its place in the queue must go before it can come back
            tpus queued-resources delete "$NAME" --force --quiet
            now=
            ;;
    esac
    if [ -z "$now" ]; then
        tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
            --runtime-version="$RUNTIME" $spot
        now=$(state)
    fi
    while [ "$now" != ACTIVE ]; do
        case $now in
            FAILED | SUSPEND* | DELETING) die "$NAME is $now: $0 create asks again" ;;
        esac
        echo "$NAME is ${now:-not there yet}"
        sleep "$POLL"
        now=$(state)
    done
    echo "$NAME is ACTIVE"
}

install() {
    archive=$(mktemp)
    trap 'rm -f "$archive"' EXIT
    tar -czf "$archive" --exclude=__pycache__ simclr_jax configs setup.py pyproject.toml README.md LICENSE
    tpus tpu-vm scp "$archive" "$NAME:simclr_jax.tgz" --worker=all
    on_hosts all "set -e; mkdir -p simclr_jax; tar -xzf simclr_jax.tgz -C simclr_jax; cd simclr_jax
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
test -x .venv/bin/python || python3 -m uv venv --quiet --seed --python $PYTHON .venv
.venv/bin/pip install --quiet -e '.[tpu]'"
}

run() { # The hosts do not depend on this connection: nohup, and the output goes to a file.
    local command
    command=$(printf '%q ' .venv/bin/python -m simclr_jax.main --config="$CONFIG" --workdir="$WORKDIR" "$@")
    on_hosts all "cd simclr_jax
if kill -0 \$(cat run.pid 2>/dev/null) 2>/dev/null; then echo 'error: it runs already' >&2; exit 2; fi
rm -f run.exit
nohup bash -c $(printf '%q' "JAX_PLATFORMS=tpu,cpu $command & echo \$! >run.pid; wait \$!; echo \$? >run.exit") \\
    >>run.log 2>&1 </dev/null &"
    echo "started; $0 logs follows it"
}

main() {
    local command=${1:-help}
    [ $# -eq 0 ] || shift
    case $command in
        help | -h | --help) usage && exit ;;
        up | create | install | run | logs | status | stop | delete) ;;
        *) die "$command: no such command; there are up, create, install, run, logs, status, stop, delete" ;;
    esac
    [ -n "$ZONE" ] || die "ZONE is not set: for example ZONE=us-west4-a"
    case $command in
        up | run)
            case $WORKDIR in
                gs://*) ;;
                '') die "WORKDIR is not set: for example WORKDIR=gs://BUCKET/runs/imagenet" ;;
                *) die "WORKDIR=$WORKDIR: all hosts must see it, so it begins with gs://" ;;
            esac
            ;;
        *) [ $# -eq 0 ] || die "$command takes no options: $1" ;;
    esac
    command -v gcloud >/dev/null || die "gcloud is not installed"
    cd "$(dirname "$0")/../.."
    case $CONFIG in
        configs/*) [ -f "$CONFIG" ] || die "CONFIG=$CONFIG: there is no such file in $PWD" ;;
        *) die "CONFIG=$CONFIG: only what is in configs/ is copied to the hosts" ;;
    esac
    # shellcheck disable=SC2016  # the hosts expand it
    case $command in
        up) # not create && install: after && a function does not stop where it fails
            create
            install
            run "$@"
            ;;
        run) run "$@" ;;
        logs) on_hosts "${WORKER:-0}" 'tail -n 50 -F simclr_jax/run.log' ;;
        status)
            on_hosts all 'cd simclr_jax
if kill -0 $(cat run.pid 2>/dev/null) 2>/dev/null; then now=runs; else now="exit code $(cat run.exit 2>/dev/null)"; fi
echo "$(hostname): $now"'
            ;;
        stop)
            on_hosts all 'cd simclr_jax
kill -TERM $(cat run.pid) && tail --pid=$(cat run.pid) -f /dev/null; echo "$(hostname): exit code $(cat run.exit)"'
            ;;
        delete) tpus queued-resources delete "$NAME" --force --quiet ;;
        *) "$command" ;;
    esac
}

main "$@"
