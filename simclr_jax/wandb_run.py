"""A run at Weights & Biases: one id per workdir, and no files outside the workdir."""

import json
import tempfile
import uuid
from collections.abc import Mapping
from typing import Any

from etils import epath

from simclr_jax import files, paths
from simclr_jax.errors import SimclrError, one_line

FILE = "wandb.json"  # the run's id


def wandb_id(workdir: epath.Path) -> str:
    """The run's id at W&B: made once and kept in the workdir, so that a resumed run goes on under it.

    A copy of a workdir gets an id of its own: it notes the folder that it was copied from, which is still
    there. A workdir that was moved keeps its id.
    """
    here = paths.real(workdir)
    known, made_for = _noted_id(workdir)
    copied = made_for not in ("", here) and _noted_id(epath.Path(made_for))[0] == known
    if not known or copied:
        known = uuid.uuid4().hex[:16]
    if (known, here) != (_noted_id(workdir)):
        files.write(workdir / FILE, json.dumps({"id": known, "workdir": here}, indent=2) + "\n")
    return known


def _noted_id(workdir: epath.Path) -> tuple[str, str]:
    """(id, the workdir it was made for), empty where nothing is noted."""
    noted = files.read_json(workdir / FILE)
    fields = (noted.get(name) if isinstance(noted, dict) else None for name in ("id", "workdir"))
    name, of = (field if isinstance(field, str) else "" for field in fields)
    return name, of


def start(workdir: epath.Path, project: str, config: Mapping[str, Any] | None) -> Any:
    """Starts or resumes the run at W&B; its local files are in the workdir.

    Raises:
      SimclrError: W&B is not installed, or does not start.
    """
    try:
        import wandb
    except ImportError:
        raise SimclrError(
            "config.log.wandb=True: wandb is not installed; pip install 'simclr_jax[wandb]'"
        ) from None
    # W&B keeps a local copy, in a folder `wandb`.
    local = tempfile.mkdtemp() if paths.is_remote(workdir) else paths.real(workdir)
    name, known = paths.absolute(workdir).name, wandb_id(workdir)
    try:
        return wandb.init(project=project, id=known, name=name, config=config, resume="allow", dir=local)
    except Exception as error:  # of many kinds: no key, no network, no such project
        raise SimclrError(
            f"config.log.wandb=True: W&B does not start ({one_line(error)}); run `wandb login`, or set "
            "WANDB_MODE=offline"
        ) from None
