"""The device mesh and where arrays live on it.

One axis, `data`: batches are split along it, everything else is replicated. Computations are written
from the global view (`jax.jit` + `NamedSharding`), so one device and a pod run the same code.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, Sharding

from simclr_jax.errors import SimclrError, StorageError

AXIS = "data"


def make_mesh(devices: int = 0) -> Mesh:
    """A one-dimensional mesh over `devices` accelerators (0: all of them)."""
    available = jax.devices()
    if devices > len(available):
        raise SimclrError(f"config.mesh.devices={devices}: this machine has {len(available)}; 0 takes all")
    if jax.process_count() > 1 and devices not in (0, len(available)):
        raise SimclrError(
            f"config.mesh.devices={devices}: must be 0 with {jax.process_count()} processes, which share all "
            f"{len(available)}"
        )
    return mesh_of(available[: devices or None])


def mesh_of(devices: Sequence[Any]) -> Mesh:
    """A one-dimensional mesh over these devices, in the order that suits their links."""
    # Auto axes: with the default Explicit ones NT-Xent's product raises ShardingTypeError.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, jax.P())


def by_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, jax.P(AXIS))


def put_batch(batch: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Puts this process's rows of a batch (a pytree of NumPy arrays `[n_local, ...]`) on the mesh.

    Args:
      axis: the batch's; 1 where several batches lie behind each other, `[k, n_local, ...]`.
    """
    where = NamedSharding(mesh, jax.P(*[None] * axis, AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, x), batch)


def put_same(tree: Any, where: Sharding) -> Any:
    """Shards arrays that are equal in all processes; each process places its own part.

    `jax.device_put` would compare the arrays between processes. That is a collective with a copy of all
    arrays, and it must not run between the collectives of a running program.
    """

    def place(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, where, lambda part: x[part])

    return jax.tree.map(place, tree)


def agreed(number: int) -> bool:
    """Whether all processes have the same number."""
    if jax.process_count() == 1:
        return True
    return len(set(multihost_utils.process_allgather(np.int32(number)).tolist())) == 1


def barrier() -> None:
    """Waits until all processes have called it."""
    agreed(0)


def from_first(ask: Callable[[], Any]) -> Any:
    """Calls `ask` on process 0 and sends its JSON result to all processes; a SimclrError is raised on all."""
    if jax.process_count() == 1:
        return ask()
    told: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            told = {"value": ask()}
        except SimclrError as error:
            told = {"error": str(error), "disk": isinstance(error, StorageError)}
    text = np.frombuffer(json.dumps(told).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = multihost_utils.broadcast_one_to_all(np.resize(text, length))
    told = json.loads(bytes(np.asarray(text, np.uint8)))
    if "error" in told:
        raise (StorageError if told["disk"] else SimclrError)(told["error"])
    return told["value"]


def gather(tree: Any) -> Any:
    """Gathers every array whole, as NumPy, on every process."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(np.asarray, jax.device_get(tree))
