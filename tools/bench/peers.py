"""Other projects' way to do each part, run by the interpreter of an environment where they are installed.

Speaks JSON lines: the first line on stdin describes the part, the answer names the contender (or says what is
missing); each further line asks for one repeat and is answered with its seconds, CPU seconds and peak memory.
Imports neither jax nor simclr_jax.

Peers get their usual fast settings: all cores (but input, which is compared by the core), on CUDA channels
last, bfloat16 autocast where our model computes in it, TF32 otherwise, torch.compile and cuDNN's benchmark.
"""

import importlib
import importlib.metadata
import json
import os
import sys
import time
import types
from pathlib import Path

try:
    import numpy as np
    import torch
    from torch import nn
except ImportError:
    torch = None


class Missing(Exception):  # noqa: N818 - not an error
    """What the environment lacks, and what to do about it, in one line."""


# ---- imports ------------------------------------------------------------------------------------


def import_torchvision():
    """torchvision, also where its compiled operations do not fit this torch: no part needs them."""
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError:
        raise Missing(f"torchvision is not installed for {sys.executable}: install it there") from None
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        import_torchvision.operations = library = torch.library.Library("torchvision", "DEF")  # kept alive
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("torchvision")


def import_lightly(module: str):
    """A module of lightly; where its package asks for what is not installed, that module alone."""
    import_torchvision()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == "lightly":
            raise Missing(f"lightly is not installed for {sys.executable}: install it there") from None
    root = Path(importlib.util.find_spec("lightly").origin).parent
    package, _, _ = module.rpartition(".")
    bare = sys.modules[package] = types.ModuleType(package)  # in place of its __init__
    bare.__path__ = [str(root.joinpath(*package.split(".")[1:]))]
    return importlib.import_module(module)


def lightly_name() -> str:
    """lightly and its version."""
    return f"lightly {importlib.metadata.version('lightly')}"


# ---- the parts: settings -> (name, function that does it once and waits, notes) ---------------------


def nt_xent(temperature):
    """(name, loss of (z0 [n, d], z1 [n, d]), notes): lightly's, or the textbook's in plain PyTorch."""
    try:
        module = import_lightly("lightly.loss.ntx_ent_loss")
        return lightly_name(), module.NTXentLoss(temperature=temperature), []
    except Missing as missing:
        return (
            f"PyTorch {torch.__version__}",
            plain_nt_xent(temperature),
            [f"plain PyTorch as peer: {missing}"],
        )


def plain_nt_xent(temperature):
    """NT-Xent as most implementations write it."""

    def loss(z0, z1):
        z = nn.functional.normalize(torch.cat([z0, z1]), dim=1)
        logits = z @ z.T / temperature
        logits.fill_diagonal_(float("-inf"))
        n = len(z0)
        return nn.functional.cross_entropy(logits, torch.arange(2 * n, device=z.device).roll(n))

    return loss


def loss_part(n, dim, temperature):
    """Value and gradient of the loss."""
    name, loss, notes = nt_xent(temperature)
    z0, z1 = (torch.randn(n, dim, device=DEVICE, requires_grad=True) for _ in range(2))

    def go():
        z0.grad = z1.grad = None
        loss(z0, z1).backward()

    return name, go, notes


def step_part(encoder, depth, stem, dtype, layers, dim, temperature, batch, size, channels, together):
    """The train step, SGD with momentum, as lightly's examples write it: a forward pass for each view.

    Or faster: both views `together`, the fused optimiser, and on CUDA small images by CUDA graphs.
    """
    if encoder != "resnet" or depth not in (18, 34, 50, 101, 152):
        raise Missing(f"torchvision has no {encoder} of depth {depth}; choose config.model.encoder=resnet")
    vision = import_torchvision()
    backbone = embedding_model(vision, encoder, depth, 1, stem, channels)
    width = 512 if depth < 50 else 2048
    model = nn.Sequential(backbone, projection_head(width, dim, layers)).to(DEVICE)
    model = model.to(memory_format=torch.channels_last)
    name, loss, notes = nt_xent(temperature)
    # fused=None is PyTorch's default; False would be slower than that.
    sgd = {"lr": 0.06, "momentum": 0.9, "weight_decay": 5e-4, "fused": True if together else None}
    optimizer = torch.optim.SGD(model.parameters(), **sgd)
    mode = "reduce-overhead" if together and size <= 64 else "default"  # CUDA graphs: no launches to wait for
    forward = torch.compile(model, mode=mode) if CUDA else model
    views = [torch.rand(batch, channels, size, size, device=DEVICE) for _ in range(2)]
    views = [view.to(memory_format=torch.channels_last) for view in views]
    half = torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16")

    def go():
        optimizer.zero_grad()
        with half:
            z0, z1 = forward(torch.cat(views)).chunk(2) if together else map(forward, views)
        loss(z0.float(), z1.float()).backward()
        optimizer.step()

    return f"{name}, {'one forward' if together else 'two forwards'}", go, notes


def projection_head(width, dim, layers):
    """lightly's head, or the same in plain PyTorch: Linear and BatchNorm, ReLU between."""
    try:
        heads = import_lightly("lightly.models.modules.heads")
        return heads.SimCLRProjectionHead(width, width, dim, num_layers=layers)
    except Missing:
        blocks = []
        for i in range(layers):
            out = dim if i == layers - 1 else width
            blocks += [nn.Linear(width, out, bias=False), nn.BatchNorm1d(out), nn.ReLU()]
        return nn.Sequential(*blocks[:-1])


def knn_part(bank, queries, dim, k, classes, temperature):
    """lightly's vote, queries in the batches of its examples."""
    predict = import_lightly("lightly.utils.benchmarking.knn").knn_predict
    known, asked = torch.randn(bank, dim, device=DEVICE), torch.randn(queries, dim, device=DEVICE)
    labels = torch.randint(classes, (bank,), device=DEVICE)
    normalize = nn.functional.normalize

    @torch.no_grad()
    def go():
        columns = normalize(known, dim=1).t().contiguous()
        for part in asked.split(256):
            predict(normalize(part, dim=1), columns, labels, classes, k, temperature)

    return lightly_name(), go, []


def simclr_transform(size, strength, colour=True, geometry=True):
    """lightly's SimCLRTransform, whole or without its colour and blur, or these alone."""
    transforms = import_lightly("lightly.transforms.simclr_transform")
    off = {} if colour else {"cj_prob": 0.0, "random_gray_scale": 0.0, "gaussian_blur": 0.0}
    transform = transforms.SimCLRTransform(input_size=size, cj_strength=strength, **off)
    if not geometry:  # all that comes before the colour jitter
        for view in transform.transforms[:1]:  # one object for both views
            steps = view.transform.transforms
            first = next(i for i, each in enumerate(steps) if type(each).__name__ == "RandomApply")
            view.transform.transforms = steps[first:]
    return transform


def augment_part(images, side, size, strength, stage):
    """lightly's transform of one tensor after the other; it works on the host."""
    transform = simclr_transform(size, strength, geometry=stage == "whole views")
    given = torch.randint(256, (images, 3, side, side), dtype=torch.uint8)

    def go():
        for image in given:
            transform(image)

    return lightly_name(), go, ["the peer's transform takes one image after the other, on the host"]


def input_part(folder, size, batch, strength, colour):
    """A DataLoader over the folder, files read by pillow, in one process with one thread."""
    from PIL import Image

    torch.set_num_threads(1)
    transform = simclr_transform(size, strength, colour)
    paths = sorted(Path(folder).glob("*.jpg"))

    class Folder(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, i):
            with open(paths[i], "rb") as file:  # as torchvision's pil_loader
                return transform(Image.open(file).convert("RGB"))

    loader = torch.utils.data.DataLoader(Folder(), batch, shuffle=True, drop_last=True)

    def go():
        for _ in loader:
            pass
        return len(loader) * batch

    return (
        lightly_name(),
        go,
        ["the peer reads in one process; per core-second it is spared what workers add"],
    )


def embed_part(folder, size, channels, batch, encoder, depth, width, stem):
    """lightly's embedding loop over a LightlyDataset, the files read by a worker on every core."""
    vision, data = import_torchvision(), import_lightly("lightly.data")
    transforms = vision.transforms
    steps = [transforms.Grayscale()] * (channels == 1) + [
        transforms.Resize((size, size)),
        transforms.ToTensor(),
    ]
    model = embedding_model(vision, encoder, depth, width, stem, channels).to(DEVICE).eval()
    dataset = data.LightlyDataset(folder, transform=transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(dataset, batch, num_workers=os.cpu_count())

    @torch.no_grad()
    def go():  # as lightly.embedding.SelfSupervisedEmbedding.embed does it
        embeddings, names = [], []
        for images, _, files in loader:
            embeddings.extend(model(images.to(DEVICE)).flatten(1).cpu().numpy())
            names.extend(files)
        np.save(Path(folder).with_name("theirs.npy"), np.stack(embeddings))
        return len(names)

    return lightly_name(), go, ["per core-second: the peer's workers are not counted"]


def embedding_model(vision, encoder, depth, width, stem, channels):
    """torchvision's ResNet without its classifier, or our small CNN in PyTorch."""
    if encoder == "cnn":
        layers, before = [], channels
        for wide, kernel in ((32, 4), (64, 4), (128, 3)):
            wide = max(1, round(wide * width))
            layers += [nn.Conv2d(before, wide, kernel, 2, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
            before = wide
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2))
    if encoder != "resnet" or depth not in (18, 34, 50, 101, 152):
        raise Missing(f"torchvision has no {encoder} of depth {depth}; choose config.model.encoder=resnet")
    backbone = getattr(vision.models, f"resnet{depth}")()
    backbone.fc = nn.Identity()
    if stem != "imagenet":
        backbone.conv1, backbone.maxpool = nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.Identity()
    elif channels != 3:
        backbone.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return backbone


PARTS = {
    "loss": loss_part,
    "step": step_part,
    "knn": knn_part,
    "augment": augment_part,
    "input": input_part,
    "embed": embed_part,
}


# ---- measuring ----------------------------------------------------------------------------------


def read_status(field):
    """A size in bytes from /proc/self/status, None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":"))
    except (OSError, StopIteration):
        return None


def reset_peak():
    """Memory held now; the peak counts from here on."""
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return read_status("VmRSS")


def one_repeat(go, times):
    """Seconds, CPU seconds and memory of a repeat, `times` in a row before the device is waited for.

    The times are one's; where `go` counts its items, an item's.
    """
    before = reset_peak()
    begin, cpu = time.perf_counter(), time.process_time()
    items = sum(go() or 1 for _ in range(times))
    if CUDA:
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    peak = torch.cuda.max_memory_allocated() if CUDA else read_status("VmHWM")
    known = before is not None and peak is not None
    return {
        "seconds": seconds / items,
        "cpu_seconds": cpu_seconds / items,
        "memory_bytes": max(peak - before, 0) if known else None,
    }


def answer(settings):
    """(the part's function, what to say of it)."""
    if torch is None:
        raise Missing(f"PyTorch is not installed for {sys.executable}: install it there")
    part = PARTS[settings.pop("part")]
    name, go, notes = part(**settings)
    return go, {"name": name, "notes": notes}


def main():
    """Answers until stdin ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    go = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if "go" in question:
                reply = one_repeat(go, question["go"])
            else:
                go, reply = answer(question)
        except Missing as missing:
            reply = {"missing": str(missing)}
        except MemoryError as error:
            reply = {"out_of_memory": f"out of memory: {error}"}
        except (RuntimeError, ValueError, ImportError, OSError) as error:
            text = str(error).strip().splitlines()[0]
            full = "out of memory" in text or "can't allocate memory" in text
            reply = {"out_of_memory" if full else "error": text}
            if full and CUDA:  # leave room for the others
                torch.cuda.empty_cache()
        print(json.dumps(reply), file=out, flush=True)


if torch is not None:
    CUDA = torch.cuda.is_available()
    DEVICE = "cuda" if CUDA else "cpu"
    torch.manual_seed(0)
    np.random.seed(0)
    torch.set_float32_matmul_precision("high")  # TF32, as JAX takes by default
    torch.backends.cudnn.benchmark = True

if __name__ == "__main__":
    main()
