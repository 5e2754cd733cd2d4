"""Converts google-research/simclr's TensorFlow checkpoints from and to workdirs.

It reads TF1 name-based checkpoints (SimCLR v1 and v2 as released), TF2 object-based ones, and SavedModels
with unambiguous names. It infers the architecture from the variables' shapes.
"""

import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import encoder, paths
from simclr_jax.convert import names
from simclr_jax.convert.architectures import recognise_tf
from simclr_jax.convert.infer import Found, infer
from simclr_jax.convert.workdir import assemble, check_free, describe, expected, new_folder, write
from simclr_jax.data.tf import load as load_tensorflow
from simclr_jax.errors import SimclrError, one_line

SCOPES = ("base_model/", "head_contrastive/", "head_supervised/")  # of the model in TF1
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
TF2_SCOPES = ("model/resnet_model/", "model/_projection_head/", "model/supervised_head/")
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
UNREADABLE = Exception  # TensorFlow's reader raises Python exceptions of any type


def convert(
    checkpoint: epath.PathLike,
    out: epath.PathLike,
    *,
    ema: bool = False,
    image_size: int = 0,
    probe_layer: int | None = None,
) -> str:
    """Writes the workdir `out` from a checkpoint; returns a text about the model that it inferred.

    Args:
      checkpoint: a prefix (`model.ckpt-250228`), a folder with the file `checkpoint`, or a SavedModel's.
      ema: read the moving average `ema_model/` of SimCLRv2's pretrained checkpoints.
      image_size: pixels; 0: 224, or 32 with the CIFAR stem.
      probe_layer: the layer of the projection head that the classifier reads; the variables do not tell.
        None: 1 if the path contains `finetuned_1pct` or `finetuned_10pct` (SimCLRv2's), else 0.

    Raises:
      SimclrError: the checkpoint has another format, or a variable that fits no model.
    """
    check_free(out)
    where = str(checkpoint)
    found = open_checkpoint(where, ema)
    config, classes = infer(found, where, image_size=image_size, probe_layer=probe_layer)
    arrays = {name: _read(found, name, where) for name in found.shapes}
    variables = assemble(arrays, expected(config, classes), found.format, where)
    write(out, config, variables, step=found.step, origin=where)
    lines = [
        describe(config, classes),
        f"step {found.step}, images of {config.data.image_size} pixels",
    ]
    if classes and "projection" in variables["params"]:
        lines.append(
            f"the classifier is taken to read layer {config.model.probe_layer} of the head (--probe-layer)"
        )
    if found.note:
        lines.append(found.note)
    if found.left_out:
        some = ", ".join(found.left_out[:3])
        lines.append(f"left out: {len(found.left_out)} variables that are no part of the model ({some} ...)")
    return "\n".join(lines)


# ---- reading --------------------------------------------------------------------------------------


def open_checkpoint(where: str, ema: bool = False) -> Found:
    """Opens a checkpoint or SavedModel; the arguments are as in `convert`.

    Raises:
      SimclrError: the original SimCLR did not write it.
    """
    tf = load_tensorflow()
    path = paths.expand(where)
    where = os.fspath(path)
    saved_model = path.is_dir() and (path / "saved_model.pb").exists()
    if saved_model:
        prefix = str(path / "variables" / "variables")
    elif path.is_dir():
        prefix = _newest(path)
    else:
        prefix = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", where)
    if not epath.Path(f"{prefix}.index").exists():
        raise SimclrError(f"{where}: no checkpoint there ({prefix}.index is missing)")
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    except UNREADABLE as error:
        raise SimclrError(f"{where}: cannot be read as a checkpoint ({one_line(error)})") from None
    if saved_model and GRAPH in shapes:  # TF1's hub modules have names instead
        return _saved_model(shapes, reader, where)
    if any(name.startswith(TF2_SCOPES) for name in shapes):
        return object_based(shapes, reader.get_tensor)
    return name_based(shapes, reader.get_tensor, ema, where)


def _newest(folder: epath.Path) -> str:
    """The prefix that the file `checkpoint` names, or the only one."""
    try:
        named = load_tensorflow().train.latest_checkpoint(str(folder))
    except UNREADABLE:
        named = None
    only = [str(path).removesuffix(".index") for path in folder.glob("*.index")]
    if named or len(only) == 1:
        return named or only[0]
    raise SimclrError(f"{folder}: neither a checkpoint (no good file `checkpoint` in it) nor a SavedModel")


def _read(found: Found, name: str, where: str) -> np.ndarray:
    try:
        return np.asarray(found.read(name))
    except UNREADABLE as error:
        raise SimclrError(f"{where}: {name} cannot be read; is the file whole? ({one_line(error)})") from None


def _step(shapes: Mapping[str, tuple], read: Callable, name: str) -> int:
    try:
        return max(0, int(read(name))) if name in shapes else 0
    except UNREADABLE:  # a damaged step counter does not make the weights unusable
        return 0


def name_based(shapes: dict[str, tuple[int, ...]], read: Callable, ema: bool, where: str) -> Found:
    prefix = "ema_model/" if ema else ""
    if ema and not any(name.startswith(prefix) for name in shapes):
        raise SimclrError(f"{where}: holds no moving average (ema_model/); leave --ema out")
    mine = {}
    for name in shapes:
        short = name.removeprefix(prefix)
        # A classifier without moving average keeps its own weights.
        averaged = name.startswith(prefix) and short.startswith(SCOPES)
        lacking = short.startswith(SCOPES[2]) and prefix + name not in shapes
        if (averaged or lacking) and not name.endswith(("/Momentum", "/Adam", "/Adam_1")):
            mine[short] = name
    if not mine:
        if what := recognise_tf(shapes):
            raise SimclrError(
                f"{where}: these are weights of {what}; simclr_jax reads SimCLR's (base_model/...)"
            )
        raise SimclrError(f"{where}: no variable of SimCLR in it (base_model/...)")
    order = sorted(mine, key=_tf1_order)
    left_out = sorted(name for name in shapes if name not in mine.values() and name != "global_step")
    return Found(
        "tf1",
        {short: shapes[mine[short]] for short in order},
        lambda short: read(mine[short]),
        _step(shapes, read, "global_step"),
        left_out,
    )


def _tf1_order(name: str) -> tuple:
    scope, layer = name.split("/")[:2]
    number = re.search(r"_(\d+)$", layer)
    return SCOPES.index(f"{scope}/"), int(number[1]) if number else 0, name


def object_based(shapes: dict[str, tuple[int, ...]], read: Callable) -> Found:
    inside = [
        n for n in shapes if n.startswith(TF2_SCOPES) and n.endswith(VALUE) and "OPTIMIZER_SLOT" not in n
    ]
    short = {name.removeprefix("model/").removesuffix(VALUE): name for name in inside}
    left_out = sorted(
        n for n in shapes if n not in inside and not n.startswith(("global_step", "save_counter", GRAPH))
    )
    return Found(
        "tf2",
        {each: shapes[short[each]] for each in sorted(short, key=_tf2_order)},
        lambda each: read(short[each]),
        _step(shapes, read, f"global_step{VALUE}"),
        left_out,
    )


def _tf2_order(name: str) -> tuple:
    """Sort key of an object path: the order in which the original creates the objects."""
    parts = name.split("/")
    scope = ("resnet_model", "_projection_head", "supervised_head").index(parts[0])
    block = parts[1] == "block_groups" if len(parts) > 1 else False
    key: list[Any] = [scope, block]
    unit = ("conv2d_fixed_padding", "batch_norm_relu", "conv2d_0", "batch_norm_relu_1", "conv2d_1",
            "se_reduce", "se_expand")  # fmt: skip
    for part in parts[1:]:
        if part.isdigit():
            key.append(int(part))
        elif part in unit:
            key.append(unit.index(part))
        elif part.endswith("_layers"):  # the shortcut comes first
            key.append(0 if part in ("projection_layers", "shortcut_layers") else 1)
        elif part == "se_layer":
            key.append(2)
    return tuple(key), name


def _saved_model(shapes: dict[str, tuple[int, ...]], reader: Any, where: str) -> Found:
    """Variables by their names in the object graph, numbered like TF1's."""
    load_tensorflow()
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    try:
        graph.ParseFromString(reader.get_tensor(GRAPH))
    except UNREADABLE as error:
        raise SimclrError(f"{where}: has no readable object graph ({one_line(error)})") from None
    full = {}
    for node in graph.nodes:
        for attribute in node.attributes:
            if attribute.checkpoint_key in shapes and attribute.full_name:
                full[attribute.full_name.removesuffix(":0")] = attribute.checkpoint_key
    ranked: dict[tuple[str, str], set[int]] = {}
    parsed = {}
    for name in full:
        if match := re.search(r"(?:^|/)((?:sync_)?batch_normalization|conv2d)(?:_(\d+))?/(\w+)$", name):
            scope = "head" if "projection_head/" in name or "head_contrastive/" in name else "base"
            kind = match[1].removeprefix("sync_")
            parsed[name] = (scope, kind, int(match[2] or 0), match[3])
            ranked.setdefault((scope, kind), set()).add(int(match[2] or 0))
    for (_, kind), numbers in ranked.items():
        if max(numbers) - min(numbers) >= len(numbers):
            raise SimclrError(f"{where}: the numbers in the names of its {kind} variables have gaps")
    mine: dict[str, str] = {}
    for name in full:
        if name in parsed:
            scope, kind, number, leaf = parsed[name]
            k = sorted(ranked[scope, kind]).index(number)
            layer = re.search(r"(n?l_\d+)/", name)
            if scope == "head" and not layer:
                continue
            top = f"head_contrastive/{layer[1]}" if layer and scope == "head" else "base_model"
            unit = f"{top}/{kind}"
            short = f"{unit}/{leaf}" if scope == "head" or not k else f"{unit}_{k}/{leaf}"
        elif match := re.search(r"(n?l_\d+)/dense(?:_\d+)?/(kernel|bias)$", name):
            short = f"head_contrastive/{match[1]}/dense/{match[2]}"
        elif match := re.search(r"head_supervised/linear_layer/dense(?:_\d+)?/(kernel|bias)$", name):
            short = f"head_supervised/linear_layer/dense/{match[1]}"
        else:
            continue
        if short in mine:
            raise SimclrError(f"{where}: {name} and {mine[short]} cannot be told apart by their names")
        mine[short] = name
    if not mine:
        raise SimclrError(f"{where}: its variables have no names that tell what they are")
    return Found(
        "tf1",
        {short: shapes[full[mine[short]]] for short in sorted(mine, key=_tf1_order)},
        lambda short: reader.get_tensor(full[mine[short]]),
        0,
        sorted(set(full) - set(mine.values())),
        note="a SavedModel, told by its variables' names: not tested on the released ones",
    )


# ---- writing --------------------------------------------------------------------------------------


def export(workdir: epath.PathLike, out: epath.PathLike, *, format: str = "tf1", step: int = 0) -> str:
    """Writes the folder `out` with a checkpoint that the original loads; returns notes and its prefix.

    Args:
      format: "tf1" (name-based, `model.ckpt-STEP`) or "tf2" (object-based, `ckpt-1`).
      step: the checkpoint to read; 0: the newest.

    Raises:
      SimclrError: the original has no such model.
    """
    check_free(out)
    config, _, step, variables = encoder.read(workdir, step)
    notes = _representable(config, workdir)
    arrays = {
        leaf: np.asarray(names.get(variables, leaf.path), np.float32)  # the original has no other type
        for leaf in names.leaves(config.model, variables)
    }
    name = f"model.ckpt-{step}" if format == "tf1" else "ckpt-1"
    with new_folder(out) as folder:
        if format == "tf1":
            _write_name_based(folder, name, arrays, step)
        else:
            _write_object_based(folder, arrays, step)
    return "\n".join([*notes, str(paths.expand(out) / name)])


def _write_name_based(folder: pathlib.Path, name: str, arrays: Mapping, step: int) -> None:
    tf = load_tensorflow()
    tensors = {leaf.tf1: array for leaf, array in arrays.items()} | {"global_step": np.int64(step)}
    tf.raw_ops.SaveV2(
        prefix=str(folder / name),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(array) for array in tensors.values()],
    )
    state = f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n'
    (folder / "checkpoint").write_text(state)


def _write_object_based(folder: pathlib.Path, arrays: Mapping, step: int) -> None:
    tf = load_tensorflow()
    root = tf.train.Checkpoint(model=_tree(tf, arrays), global_step=tf.Variable(step, dtype=tf.int64))
    tf.train.CheckpointManager(root, str(folder), max_to_keep=1).save()


def _representable(config: ConfigDict, workdir: epath.PathLike) -> list[str]:
    """Notes on the model in the original's code; raises SimclrError if the original has no such model."""
    model = config.model
    for field, value, remedy in (
        ("encoder", "resnet", "only ResNets have a place there"),
        ("variant", "original", "export it with to-torch"),
    ):
        if model[field] != value:
            raise SimclrError(
                f"{workdir}: model.{field}={model[field]!r}, which the original lacks; {remedy}"
            )
    if model.stem == "cifar_pad2":
        raise SimclrError(
            f"{workdir}: model.stem='cifar_pad2', which the original lacks; export it with to-torch"
        )
    notes = []
    if any(config.data.mean):
        notes.append("note: the original takes images in [0, 1]; this encoder wants mean and std taken out")
    if model.blocks or model.width != int(model.width):
        notes.append("note: no flag of the original builds these blocks or this width; its classes do")
    return notes


def _tree(tf: Any, arrays: Mapping[names.Leaf, np.ndarray]) -> Any:
    """Objects whose attributes make the original's paths; TensorFlow matches variables by these."""
    root = tf.Module()
    for leaf, array in arrays.items():
        node, parts = root, leaf.tf2.split("/")
        for part in parts[:-1]:
            if not hasattr(node, part):
                setattr(node, part, tf.Module())
            node = getattr(node, part)
        setattr(node, parts[-1], tf.Variable(array))
    return root
