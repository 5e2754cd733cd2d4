"""A SimCLR encoder in plain PyTorch; `simclr export --format=torch` wrote this folder.

    from encoder import load  # the folder's name

    model = load()
    with torch.no_grad():
        features = model(images)["features"]  # images uint8 [n, h, w, c] of any n, h and w

weights.safetensors holds the parameters, fields.json what they do not tell, resnet.py the ResNets.
"""

import json
import pathlib

import torch
from torch import nn
from torch.nn import functional as F

from simclr_jax.convert.torch_module import SimCLRResNet, Whole

HERE = pathlib.Path(__file__).parent


def resampling(length: int, out: int, method: str, like: torch.Tensor) -> torch.Tensor:
    """The matrix `[out, length]` that resizes, by Keys' cubic from a table of 1024 entries, or linearly."""
    scale = torch.tensor(length, dtype=torch.float32) / out
    at = (torch.arange(out, dtype=torch.float32)[:, None] + 0.5) * scale - 0.5
    pixel = torch.arange(length)[None, :]
    if method == "bilinear":
        weights = (1 - (at - pixel).abs() / scale.clamp(min=1)).clamp(min=0)
    else:
        first = at.floor()
        x = (((at - first) * 1024).round() / 1024 - (pixel - first)).abs()
        near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros(())))
    return (weights / weights.sum(1, keepdim=True)).to(like.device)


def view(images: torch.Tensor, size: int, crop: float, resize: str) -> torch.Tensor:
    """The evaluation view `[n, c, size, size]` in [0, 1] of images uint8 `[n, h, w, c]`."""
    height, width = images.shape[1:3]
    shorter = min(height, width)
    if resize == "none" or size > 32:
        side = min(size, shorter) if resize == "none" else max(1, round(crop * shorter))
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        images = images[:, top : top + side, left : left + side]
    x = images.permute(0, 3, 1, 2).float() / 255
    if x.shape[2:] != (size, size):
        rows, columns = (resampling(length, size, resize, x) for length in x.shape[2:])
        x = rows @ x @ columns.T
    return x.clamp(0, 1)


def same(x: torch.Tensor, kernel: int) -> torch.Tensor:
    """Pads `[n, c, h, w]` as TensorFlow's SAME does for a stride of 2."""
    h, w = (max(kernel - 2 + length % 2, 0) for length in x.shape[2:])
    return F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))


class CNN(Whole):
    """The small CNN: convolutions of stride 2, and the means over the last map's quadrants."""

    def __init__(self, fields: dict):
        super().__init__(fields)
        self.kernels, sizes = fields["kernels"], [fields["channels"], *fields["widths"]]
        for i, kernel in enumerate(self.kernels, 1):
            self.add_module(f"conv{i}", nn.Conv2d(sizes[i - 1], sizes[i], kernel, 2, bias=False))
            self.add_module(f"norm{i}", nn.BatchNorm2d(sizes[i]))
        self.add_heads(4 * sizes[-1], fields)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The endpoints of images `[n, c, h, w]` in [0, 1]."""
        ends, x = {}, self.normalize(images)
        for i, kernel in enumerate(self.kernels, 1):
            x = self.get_submodule(f"conv{i}")(same(x, kernel))
            ends.setdefault("initial_conv", x)
            x = ends[f"block_group{i}"] = F.relu(self.get_submodule(f"norm{i}")(x))
        h, w = x.shape[2:]
        x = F.avg_pool2d(x, (-(-h // 2), -(-w // 2)), (h // 2 or 1, w // 2 or 1))
        ends["final_avg_pool"] = x.permute(0, 2, 3, 1).flatten(1)
        return ends | self.heads(ends["final_avg_pool"])


class Tutorial(Whole):
    """The tutorials' encoder: three convolutions of stride 2 and a dense layer over all places."""

    def __init__(self, fields: dict):
        super().__init__(fields)
        self.kernels, sizes = fields["kernels"], [fields["channels"], *fields["widths"]]
        for i, kernel in enumerate(self.kernels, 1):
            self.add_module(f"conv{i}", nn.Conv2d(sizes[i - 1], sizes[i], kernel, 2))
        self.dense = nn.Linear(fields["places"] * sizes[-1], fields["features"])
        self.add_heads(fields["features"], fields)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The endpoints of images `[n, c, h, w]` in [0, 1]."""
        ends, x = {}, self.normalize(images)
        for i, kernel in enumerate(self.kernels, 1):
            x = ends[f"block_group{i}"] = F.relu(self.get_submodule(f"conv{i}")(same(x, kernel)))
        ends["features"] = self.dense(x.permute(0, 2, 3, 1).flatten(1))
        return ends | self.heads(ends["features"])


class Block(nn.Module):
    """A transformer block, with timm's names."""

    def __init__(self, fields: dict):
        super().__init__()
        width, self.heads = fields["width"], fields["heads"]
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        qkv = nn.Linear(width, 3 * width, bias=fields["qkv_bias"])
        self.attn = nn.ModuleDict({"qkv": qkv, "proj": nn.Linear(width, width)})
        mlp = fields["mlp"]
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, mlp), "fc2": nn.Linear(mlp, width)})
        if fields["layer_scale"]:
            self.ls1 = nn.ParameterDict({"gamma": torch.ones(width)})
            self.ls2 = nn.ParameterDict({"gamma": torch.ones(width)})
        self.scales = fields["layer_scale"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens `[n, t, d]` to such."""
        n, t, d = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(n, t, 3, self.heads, d // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(n, t, d)
        y = self.attn["proj"](mixed)
        x = x + (y * self.ls1["gamma"] if self.scales else y)
        y = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return x + (y * self.ls2["gamma"] if self.scales else y)


class ViT(Whole):
    """The vision transformer, with timm's names; without the endpoint `attention`."""

    def __init__(self, fields: dict):
        super().__init__(fields)
        width, patch, self.token = fields["width"], fields["patch"], fields["pool"] == "token"
        proj = nn.Conv2d(fields["channels"], width, patch, patch)
        self.patch_embed = nn.ModuleDict({"proj": proj})
        if self.token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pos_embed = nn.Parameter(torch.zeros(1, fields["tokens"], width))
        self.blocks = nn.ModuleList([Block(fields) for _ in range(fields["depth"])])
        self.add_heads(width, fields)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The endpoints of images `[n, c, h, w]` in [0, 1]."""
        x = self.patch_embed["proj"](self.normalize(images)).flatten(2).transpose(1, 2)
        if self.token:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = x + self.pos_embed
        ends = {"embedding": x}
        for i, block in enumerate(self.blocks, 1):
            x = ends[f"block{i}"] = block(x)
        x = ends["tokens"] = self.norm(x) if self.token else x
        ends["features"] = x[:, 0] if self.token else x.mean(1)
        return ends | self.heads(ends["features"])


NETWORKS = {"cnn": CNN, "tutorial": Tutorial, "vit": ViT, "resnet": SimCLRResNet}


class Encoder(nn.Module):
    """Images uint8 `[n, h, w, c]` to a dict of endpoints: "features" `[n, d]`, maps `[n, h', w', k]`, ..."""

    def __init__(self, fields: dict):
        super().__init__()
        self.fields = fields
        self.network = NETWORKS[fields["encoder"]](fields)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The endpoints."""
        seen = (self.fields["image_size"], self.fields["crop"], self.fields["resize"])
        ends = self.network(view(images, *seen))
        ends = {name: x.permute(0, 2, 3, 1) if x.ndim == 4 else x for name, x in ends.items()}
        return {"features": ends["features" if "features" in ends else "final_avg_pool"], **ends}


def load(folder: str | pathlib.Path = HERE) -> Encoder:
    """The encoder of a folder, this one by default, for evaluation."""
    from safetensors.torch import load_file

    model = Encoder(json.loads((pathlib.Path(folder) / "fields.json").read_text()))
    model.network.load_state_dict(load_file(pathlib.Path(folder) / "weights.safetensors"))
    return model.eval()
