"""This project's numbers beside the original's, and SimCLRv2's table of parameters.

    python tools/parity.py

The original's were computed with google-research/simclr (commit 383d414) and lie in tests/fixtures; the tests
hold every row to its tolerance. Needs the repository, a few minutes of two CPU cores and no network.
"""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from simclr_jax import geometry, optim, sharding, train
from simclr_jax.config import count_steps, default, duration, total_steps
from simclr_jax.convert import google_tf, names
from simclr_jax.convert import workdir as conversion
from simclr_jax.data import host_augment, sources
from simclr_jax.data.splits import Splits
from simclr_jax.data.tf import load as load_tensorflow
from simclr_jax.losses import contrastive
from simclr_jax.losses.classification import distillation
from simclr_jax.models import simclr
from simclr_jax.tasks import create_task

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"
SIMCLRV2 = {  # (depth, width, selective kernels): millions, with BatchNorm's statistics, without heads
    (50, 1, 0): 24, (50, 1, 1): 35, (50, 2, 0): 94, (50, 2, 1): 140,
    (101, 1, 0): 43, (101, 1, 1): 65, (101, 2, 0): 170, (101, 2, 1): 257,
    (152, 1, 0): 58, (152, 1, 1): 89, (152, 2, 0): 233, (152, 2, 1): 354, (152, 3, 1): 795,
}  # fmt: skip


class Row(NamedTuple):
    """A quantity, the largest absolute difference found, and how much it may be."""

    quantity: str
    difference: float
    tolerance: float


def reference() -> dict[str, np.ndarray]:
    """The original's numbers by name."""
    with np.load(FIXTURES / "reference.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def apart(ours, theirs) -> float:
    """The largest absolute difference; NaN where one is not a number."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.max(np.abs(ours - theirs), initial=0.0))


def nt_xent(ref) -> Iterator[Row]:
    """Loss, gradient, accuracy, entropy and logits of view a against view b; the loss is twice ours."""
    cases = sorted({key.rsplit("/", 1)[0] for key in ref if key.startswith("ntxent") and "/t" in key})
    worst = dict.fromkeys(("loss", "gradient", "contrast_accuracy", "contrast_entropy", "logits"), 0.0)
    for case in [*cases, "ntxent/zero_row"]:
        temperature = float(case.rsplit("/t", 1)[1]) if "/t" in case else 0.5
        hidden = ref[f"{case}/hidden" if "zero_row" in case else f"{case.split('/norm')[0]}/hidden"]
        n = len(hidden) // 2

        def loss(hidden, n=n, temperature=temperature):
            z = jnp.stack([hidden[:n], hidden[n:]], axis=1)
            value, metrics = contrastive.nt_xent(z, temperature)
            return 2 * value, metrics

        (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(hidden)
        found = {"loss": (value, "loss"), "gradient": (gradient, "grad")}
        if "/t" in case:
            found["contrast_accuracy"] = (metrics["contrast_accuracy"], "contrast_acc")
            found["contrast_entropy"] = (metrics["contrast_entropy"], "contrast_entropy")
            unit = contrastive.unit(jnp.asarray(hidden))
            found["logits"] = (unit[:n] @ unit[n:].T / temperature, "logits_ab")
        for name, (ours, theirs) in found.items():
            # Logits of temperature 0.05 are 20: relative to their size, as float32 rounds.
            scale = max(1.0, float(np.abs(ref[f"{case}/{theirs}"]).max()))
            worst[name] = max(worst[name], apart(ours, ref[f"{case}/{theirs}"]) / scale)
    for name, difference in worst.items():
        yield Row(
            f"NT-Xent, {name}, {len(cases) + 1} cases", difference, 1e-6 if name != "gradient" else 2e-6
        )


def lars(ref) -> Iterator[Row]:
    """Five steps of LARS on toy variables, and its momentum; the original's exclusion list."""

    def tree(prefix):
        return {key.removeprefix(prefix): ref[key] for key in ref if key.startswith(prefix)}

    excluded = ("batch_normalization", "bias", "head_supervised")
    tx = optim.create(
        "lars", lambda step: 0.4, weight_decay=1e-4, decay_exclude=excluded, adapt_exclude=excluded
    )
    params = tree("lars/init/")
    state, update = tx.init(params), jax.jit(tx.update)
    case = "lars/wd0.0001_classic1_nesterov0"
    worst = 0.0
    for i in range(5):
        updates, state = update(tree(f"lars/grad{i}/"), state, params)
        params = jax.tree.map(np.add, params, updates)
        expected = tree(f"{case}/step{i + 1}/")
        worst = max(worst, *(apart(params[name], expected[name]) for name in expected))
    yield Row("LARS, variables after 5 steps", worst, 1e-6)
    trace = optax.tree.get(state, "trace")
    momentum = tree(f"{case}/momentum/")
    # Ours holds the step, theirs what is subtracted.
    difference = max(apart(-np.asarray(trace[name]), momentum[name]) for name in momentum)
    yield Row("LARS, momentum", difference, 1e-6)


def adam(ref) -> Iterator[Row]:
    """Five steps of Adam beside TensorFlow's own operation, gradients of every size."""
    tf = load_tensorflow()
    rng = np.random.default_rng(0)
    start = rng.standard_normal(64).astype(np.float32)
    gradients = (rng.standard_normal((5, 64)) * 10.0 ** rng.integers(-8, 1, 64)).astype(np.float32)
    theirs, m, v = (tf.Variable(x) for x in (start, np.zeros_like(start), np.zeros_like(start)))
    tx, ours = optim.create("adam", lambda step: 0.01, eps=1e-7), {"kernel": start}
    state, update = tx.init(ours), jax.jit(tx.update)
    for i, gradient in enumerate(gradients, 1):
        tf.raw_ops.ResourceApplyAdam(
            var=theirs.handle, m=m.handle, v=v.handle, beta1_power=tf.constant(0.9**i, tf.float32),
            beta2_power=tf.constant(0.999**i, tf.float32), lr=0.01, beta1=0.9, beta2=0.999, epsilon=1e-7,
            grad=gradient,
        )  # fmt: skip
        updates, state = update({"kernel": gradient}, state, ours)
        ours = jax.tree.map(np.add, ours, updates)
    yield Row("Adam, variables after 5 steps, eps 1e-7", apart(ours["kernel"], theirs), 5e-6)


def schedules(ref) -> Iterator[Row]:
    """Warm-up and cosine of CIFAR and ImageNet, and their numbers of steps."""
    for name in ("cifar", "imagenet"):
        base, examples, *flags = json.loads(str(ref[f"lr/{name}/flags"]))
        flags = dict(flag.removeprefix("--").split("=") for flag in flags)
        batch = int(flags["train_batch_size"])
        config = default()
        config.train.batch_size, config.train.epochs = batch, float(flags["train_epochs"])
        config.optimizer.warmup = duration(epochs=float(flags["warmup_epochs"]))
        total = total_steps(config, examples)
        warmup = count_steps(config.optimizer.warmup, examples, batch)
        yield Row(
            f"steps and warm-up, {name}",
            apart([total, warmup], ref[f"lr/{name}/train_steps_warmup_steps"]),
            0,
        )
        peak = optim.scaled_rate(base, flags["learning_rate_scaling"], batch)
        rate = jax.vmap(optim.schedule(peak, warmup, total))(jnp.asarray(ref[f"lr/{name}/steps"], jnp.int32))
        yield Row(
            f"learning rate, {name}, of {peak:g}", apart(rate, ref[f"lr/{name}/lr"]), 1e-6 * max(1, peak)
        )


def converted(name: str) -> tuple[ConfigDict, dict]:
    """(config.model, variables) of a fixture's checkpoint, without a workdir."""
    where = str(FIXTURES / name)
    found = google_tf.open_checkpoint(where)
    config, classes = google_tf.infer(found, where)
    arrays = {each: found.read(each) for each in found.shapes}
    return config, conversion.assemble(arrays, conversion.expected(config, classes), found.format, where)


MODELS = {"basic_cifar": "ckpt_tf2_basic_cifar", "bottle_sk": "ckpt_tf1_bottle_sk"}


def models(ref) -> Iterator[Row]:
    """Every endpoint of two small ResNets: evaluation, and a training call with its moving statistics."""
    for name, checkpoint in MODELS.items():
        config, variables = converted(checkpoint)
        model = simclr.create(config.model, classes=10)
        x, prefix = ref[f"model_{name}/x"], f"model_{name}/eval/"
        ends = jax.jit(functools.partial(model.apply, method="endpoints"))(variables, x)
        ends |= {"proj": ends["projection"]}
        for key in sorted(key for key in ref if key.startswith(prefix)):
            end = key.removeprefix(prefix)
            yield Row(f"{name}, evaluation, {end}", apart(ends[end], ref[key]), 2e-6)
        yield from _training_mode(ref, name, config, variables)


def _training_mode(ref, name, config, variables) -> Iterator[Row]:
    prefix, x, features = f"model_{name}/train/", ref[f"model_{name}/x"], {}
    # The precision of the oracle: what float32 leaves of a batch of 4 is told beside what float64 says.
    for dtype, tolerance in (("float32", 2e-4 if name == "bottle_sk" else 1e-5), ("float64", None)):
        with jax.enable_x64(dtype == "float64"):
            model = simclr.create({**config.model, "dtype": dtype}, classes=10)
            mine = jax.tree.map(lambda a, dtype=dtype: np.asarray(a, dtype), variables)
            call = jax.jit(lambda v, x, m=model: m.apply(v, x, train=True, mutable=["batch_stats"]))
            outputs, moved = call(mine, x.astype(dtype))
        features[dtype] = outputs["features"]
        pooled = apart(outputs["features"], ref[f"{prefix}final_avg_pool"])
        statistics = 0.0
        for leaf in names.leaves(config.model, variables):
            if f"{prefix}{leaf.tf2}" in ref and leaf.path[0] == "batch_stats":
                statistics = max(statistics, apart(names.get(moved, leaf.path), ref[f"{prefix}{leaf.tf2}"]))
        allowed = tolerance or (2e-4 if name == "bottle_sk" else 1e-5)
        yield Row(f"{name}, training in {dtype}, final_avg_pool", pooled, allowed)
        yield Row(f"{name}, training in {dtype}, moving statistics", statistics, allowed)
    rounding = apart(features["float32"], features["float64"])
    yield Row(
        f"{name}, training, our float32 beside our float64", rounding, 1e-4 if name == "bottle_sk" else 1e-5
    )


def training(ref) -> Iterator[Row]:
    """Three whole steps of pretraining: forward, loss, online head, gradient, LARS."""
    where, prefix = "ckpt_tf2_basic_cifar", "train_basic_cifar/"
    config, variables = converted(where)
    config.data.source, config.train.batch_size, config.train.epochs = "arrays", 8, 4.0
    config.loss.temperature, config.loss.scale = 0.1, 2.0
    config.optimizer.learning_rate, config.optimizer.weight_decay = 2.0, 1e-4
    config.optimizer.warmup = duration(epochs=1)
    images = np.zeros((64, 32, 32, 3), np.uint8)
    splits = Splits(sources.from_arrays(images, np.arange(64) % 10), None)
    mesh = sharding.make_mesh(1)
    task = create_task(config, splits, mesh)
    optimizer, rate = train.build_optimizer(config, 64, total_steps(config, 64), task)
    state = train.init_state(task, optimizer, 0, mesh)
    leaves = names.leaves(config.model, variables)
    start: dict = {}
    for leaf in leaves:
        names.put(start, leaf.path, jnp.asarray(ref[f"{prefix}init/{leaf.tf2}"]))
    state = state.replace(params=start.pop("params"), model_state=start)
    step = jax.jit(train.make_step(task, optimizer, rate, 0))
    losses_found, rates = [], []
    for x, y in zip(ref[f"{prefix}x"], ref[f"{prefix}y"], strict=True):
        views = np.stack([x[..., :3], x[..., 3:]], axis=1)
        decay = 0.5e-4 * np.sum(np.asarray(state.params["probe"]["dense"]["kernel"], np.float64) ** 2)
        state, metrics = step(state, {"views": views, "label": y.astype(np.int32)})
        contrast, probe = float(metrics["loss"]), float(metrics["probe_loss"])
        losses_found.append([contrast, probe, decay, contrast + probe + decay])
        rates.append(float(metrics["learning_rate"]))
    theirs = ref[f"{prefix}losses_con_sup_wd_total_per_replica"][..., 0]
    for i, what in enumerate(("contrastive", "online head's", "weight decay's", "total")):
        yield Row(f"3 steps, {what} loss", apart([row[i] for row in losses_found], theirs[:, i]), 1e-4)
    yield Row("3 steps, learning rate", apart(rates, ref[f"{prefix}lr"]), 1e-8)
    final = {"params": state.params, **state.model_state}
    difference = max(apart(names.get(final, leaf.path), ref[f"{prefix}final/{leaf.tf2}"]) for leaf in leaves)
    yield Row("3 steps, all weights and moving statistics", difference, 1e-4)


def distill(ref) -> Iterator[Row]:
    """SimCLRv2's distillation loss and its gradient."""
    for temperature in (1, 2):

        def loss(s, t=temperature):
            return distillation(s, ref["distill/teacher"], float(t))

        value, gradient = jax.jit(jax.value_and_grad(loss))(ref["distill/student"])
        expected = ref[f"distill/T{temperature}/loss"]
        yield Row(f"distillation loss, T = {temperature}, relative", apart(value / expected, 1), 1e-6)
        yield Row(
            f"distillation gradient, T = {temperature}",
            apart(gradient, ref[f"distill/T{temperature}/grad"]),
            1e-6,
        )


def images(ref) -> Iterator[Row]:
    """Evaluation crop, blur and colour operations, in TensorFlow and where there is one in JAX."""
    tf = load_tensorflow()
    for size in (32, 96):
        worst = {"TensorFlow": 0.0, "JAX": 0.0}
        for i in range(4):
            image, expected = ref[f"data/img{i}_uint8"], ref[f"data/eval_crop{size}_img{i}"]
            ours = geometry.center_crop(image[None].astype(np.float32) / 255, size, 0.875)[0]
            worst["JAX"] = max(worst["JAX"], apart(ours, expected))
            ours = host_augment.center_crop(tf.constant(image), size, 0.875)
            worst["TensorFlow"] = max(worst["TensorFlow"], apart(ours, expected))
        for who, difference in worst.items():
            yield Row(f"evaluation crop to {size} px, {who}", difference, 1e-5)
    ours = host_augment.center_view(tf.constant(ref["data/cifar_uint8"]), 32, 0.875)
    yield Row("evaluation of 32 px: as it is", apart(ours, ref["data/cifar_eval"]), 1e-7)
    for key in sorted(key for key in ref if key.startswith("data/blur_k")):
        kernel, sigma = key.removeprefix("data/blur_k").split("_s")
        ours = [host_augment.gaussian_blur(x, float(sigma), int(kernel)) for x in ref["data/blur_in"]]
        yield Row(f"blur, kernel {kernel}, sigma {sigma}", apart(np.clip(ours, 0, 1), ref[key]), 1e-6)
    x = tf.constant(ref["data/color_in"])
    yield Row("grayscale", apart(host_augment.to_grayscale(x), ref["data/gray"]), 1e-6)
    # One operation of the jitter at a time, the others neutral: 0.5 is the middle of their ranges.
    places = {"contrast": (1, 0.2, 1.8), "saturation": (2, 0.2, 1.8), "hue": (3, -0.2, 0.2)}
    for name, (place, low, high) in places.items():
        for key in sorted(key for key in ref if key.startswith(f"data/{name}_")):
            amount = float(key.rsplit("_", 1)[1])
            amounts = [0.5] * 4
            amounts[place] = (amount - low) / (high - low)
            ours = host_augment.color_jitter(x, amounts, 0.0, 1.0)
            yield Row(f"{name} {amount:g}, clipped", apart(ours, np.clip(ref[key], 0, 1)), 2e-6)
    small = geometry.resize(ref["data/img0"][None], (17, 13), "bicubic")[0]
    yield Row("bicubic 37×53 to 17×13, JAX", apart(small, ref["data/tf2_bicubic_17x13"]), 1e-5)


def crops(ref) -> Iterator[Row]:
    """The random crop's distribution: Kolmogorov-Smirnov distance of 20,000 draws from their 2,000."""
    tf = load_tensorflow()
    options = host_augment.Options()

    def draw(i):
        key = host_augment.view_key(0, i, 0)
        begin, extent = host_augment.random_crop_box(tf.constant([320, 480, 3]), key, options)
        return tf.concat([begin[:2], extent[:2]], axis=0)

    boxes = tf.data.Dataset.range(20_000).map(draw, num_parallel_calls=2).batch(20_000)
    ours, theirs = next(iter(boxes)).numpy(), ref["data/crop_draws_320x480"]
    for what, of in (
        ("area", lambda y, x, h, w: h * w),
        ("aspect", lambda y, x, h, w: w / h),
        ("top", lambda y, x, h, w: y),
        ("left", lambda y, x, h, w: x),
        ("centre, vertical", lambda y, x, h, w: y + h / 2),
        ("centre, horizontal", lambda y, x, h, w: x + w / 2),
    ):
        yield Row(f"random crop, {what}, KS distance", ks_distance(of(*ours.T), of(*theirs.T)), 0.05)


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of the two samples' cumulative distributions."""
    points = np.concatenate([a, b])
    below = (np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (a, b))
    return float(np.max(np.abs(next(below) - next(below))))


PARTS: dict[str, Callable] = {
    "nt_xent": nt_xent,
    "lars": lars,
    "adam": adam,
    "schedules": schedules,
    "models": models,
    "training": training,
    "distill": distill,
    "images": images,
    "crops": crops,
}


def parameters(depth: int, width: float, selective: bool) -> int:
    """Parameters and moving statistics of an encoder of SimCLRv2's table."""
    fields = {"depth": depth, "width": float(width), "sk_ratio": 0.0625 * selective, "projection": "none"}
    config = conversion.config_of(fields)
    return sum(int(np.prod(shape)) for shape in conversion.expected(config, 0).values())


def main() -> None:
    """Prints both tables as Markdown."""
    ref = reference()
    print("| quantity | largest difference | allowed |\n|---|---|---|")
    for part in PARTS.values():
        for row in part(ref):
            mark = "" if row.difference <= row.tolerance else " **too far**"
            print(f"| {row.quantity} | {row.difference:.1e}{mark} | {row.tolerance:g} |", flush=True)
    print("\n| ResNet | SK | parameters | SimCLRv2's table, M |\n|---|---|---|---|")
    for (depth, width, selective), millions in SIMCLRV2.items():
        count = parameters(depth, width, bool(selective))
        print(f"| {depth}, {width}× | {'yes' if selective else 'no'} | {count:,} | {millions} |")


if __name__ == "__main__":
    main()
