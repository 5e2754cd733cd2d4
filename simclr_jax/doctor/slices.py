"""The devices of a TPU slice that is not here, for TPU's compiler. Needs libtpu and no TPU."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator

from jax.experimental import topologies
from jax.sharding import Mesh

from simclr_jax import sharding
from simclr_jax.doctor import chips
from simclr_jax.errors import SimclrError, one_line

# Without these libtpu asks a cloud machine's metadata, for minutes, and lets one process in at a time.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def mesh_of(topology: str) -> Mesh:
    """The mesh of a slice, which TPU's compiler calls v5e:4x8 or v5p:2x2x2.

    Raises:
      SimclrError: libtpu is not installed, or there is no such slice.
    """
    if chips.of(topology) is None:
        raise SimclrError(
            f"--topology={topology}: must be one of {', '.join(chips.CHIPS)} and a slice, like v5e:4x8"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise SimclrError(f'--topology={topology}: TPU\'s compiler is missing; pip install "jax[tpu]"')
    try:
        with _environment(ALONE):
            devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # whatever libtpu makes of a name it does not know
        raise SimclrError(
            f"--topology={topology}: TPU's compiler knows no such slice ({one_line(error)}); v5e:4x8 is one"
        ) from None
    return sharding.mesh_of(devices)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables that are not set, within `with`."""
    mine = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            del os.environ[name]
