#!/usr/bin/env bash
# A run on one GPU host, with all its GPUs in one process. Installs on the first call.
#
#   tools/launch/one_gpu.sh --config=configs/cifar10.py --workdir=runs/cifar10
#
# CUDA_VISIBLE_DEVICES=0,1   only these GPUs
# DETERMINISTIC=1            resumed = never stopped, to the bit: XLA then avoids GPU operations whose sums depend
#                            on the order of threads; some are slower
# VENV, PYTHON               virtual environment (.venv) and the Python it is made with (python3)
set -euo pipefail

die() {
    echo "error: $*" >&2
    exit 2
}

cd "$(dirname "$0")/../.."
venv=${VENV:-.venv} python=${PYTHON:-python3}

[ $# -gt 0 ] || die "options are missing: $0 --config=configs/cifar10.py --workdir=runs/cifar10"
command -v nvidia-smi >/dev/null || die "nvidia-smi is not there: this host has no NVIDIA driver"
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader) || # a line a GPU
    die "nvidia-smi fails: no GPU, or driver and kernel do not fit"
driver=${driver%%$'\n'*}
case $driver in
    [0-9]*.*) ;;
    *) die "nvidia-smi names no driver version: ${driver:-no GPU found}" ;;
esac

if [ ! -e "$venv/.installed-cuda" ] || [ setup.py -nt "$venv/.installed-cuda" ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$python is older than 3.11: PYTHON=python3.12 $0 ..."
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    if [ "${driver%%.*}" -ge 580 ]; then
        packages=('.[cuda]')
    else # CUDA 13 needs driver 580
        packages=(. 'jax[cuda12]')
    fi
    # Compiled while it is installed, TensorFlow starts in 10 s instead of 30.
    env -u PYTHONDONTWRITEBYTECODE "$venv/bin/pip" install --quiet --disable-pip-version-check \
        -e "${packages[@]}"
    touch "$venv/.installed-cuda"
fi

if [ "${DETERMINISTIC:-0}" = 1 ]; then
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true"
fi
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu} # without its GPU it fails instead of training on the CPU
exec "$venv/bin/python" -m simclr_jax.main "$@"
