"""SimCLR's ResNet in plain PyTorch, for weights that `python -m simclr_jax.convert to-torch` wrote.

    from simclr_resnet import load

    model = load("weights.pth")  # or weights.safetensors; weights.json lies beside it
    with torch.no_grad():
        features = model(images)["final_avg_pool"]  # images [n, 3, h, w], float in [0, 1]

It computes what the original SimCLR does, which is not what torchvision's ResNet does: a projection shortcut
in the first block of every group, a max-pool that pads at the end, and the ResNet-D, selective kernels and
squeeze-and-excitation of SimCLRv2.
"""

import json

import torch
from torch import nn
from torch.nn import functional as F

STEMS = {"imagenet": (7, 2, 3), "cifar": (3, 1, 1), "cifar_pad2": (3, 1, 2)}  # kernel, stride, padding


def conv(before: int, after: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution with kernel // 2 pixels of padding on each side, whatever the stride."""
    return nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=bias)


def max_pool_same(x: torch.Tensor) -> torch.Tensor:
    """3×3 with stride 2 and TensorFlow's SAME padding: of an even size at the end only."""
    h, w = x.shape[2:]
    x = F.pad(x, (w % 2, 1, h % 2, 1), value=float("-inf"))
    return F.max_pool2d(x, kernel_size=3, stride=2)


class AvgPool(nn.Module):
    """ResNet-D's 2×2 pooling before the shortcut's convolution; pads at the end.

    The padding of stride 2 counts as zeros; that of stride 1 does not count, which a repeated edge amounts
    to.
    """

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, c, h, w] to [n, c, h', w'], h' = ceil(h / stride)."""
        mode = "constant" if self.stride > 1 else "replicate"
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode), 2, self.stride)


class Block(nn.Module):
    """A residual block: two 3×3 convolutions, or 1×1, 3×3 and 1×1 (bottleneck)."""

    def __init__(
        self,
        before: int,
        features: int,
        stride: int,
        project: bool,
        bottleneck: bool,
        sk_ratio: float,
        se_ratio: float,
    ):
        super().__init__()
        after = features * (4 if bottleneck else 1)
        self.features, self.bottleneck = features, bottleneck
        self.selective, self.excites = bottleneck and bool(sk_ratio), bool(se_ratio)
        self.project = project
        if project:
            self.pool = AvgPool(stride) if sk_ratio else nn.Identity()
            shortcut = conv(before, after, 1, 1 if sk_ratio else stride)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(after))
        if not bottleneck:
            self.conv1, self.bn1 = conv(before, features, 3, stride), nn.BatchNorm2d(features)
            self.conv2, self.bn2 = conv(features, after, 3), nn.BatchNorm2d(after)
        else:
            self.conv1, self.bn1 = conv(before, features, 1), nn.BatchNorm2d(features)
            if self.selective:
                both, low = 2 * features, max(int(features * sk_ratio), 32)
                self.sk_conv, self.sk_bn = conv(features, both, 3, stride), nn.BatchNorm2d(both)
                self.sk_reduce, self.sk_reduce_bn = conv(features, low, 1), nn.BatchNorm2d(low)
                self.sk_expand = conv(low, both, 1)
            else:
                self.conv2, self.bn2 = conv(features, features, 3, stride), nn.BatchNorm2d(features)
            self.conv3, self.bn3 = conv(features, after, 1), nn.BatchNorm2d(after)
        if self.excites:
            low = max(1, int(features * se_ratio))
            self.se_reduce, self.se_expand = conv(after, low, 1, bias=True), conv(low, after, 1, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, before, h, w] to [n, after, h', w']."""
        shortcut = self.downsample(self.pool(x)) if self.project else x
        x = F.relu(self.bn1(self.conv1(x)))
        if self.bottleneck:
            x = self.select(x) if self.selective else F.relu(self.bn2(self.conv2(x)))
            x = self.bn3(self.conv3(x))
        else:
            x = self.bn2(self.conv2(x))
        if self.excites:
            gate = F.relu(self.se_reduce(x.mean((2, 3), keepdim=True)))
            x = x * torch.sigmoid(self.se_expand(gate))
        return F.relu(x + shortcut)

    def select(self, x: torch.Tensor) -> torch.Tensor:
        """Two 3×3 convolutions mixed by a softmax of their pooled sum (arXiv 1903.06586)."""
        streams = F.relu(self.sk_bn(self.sk_conv(x))).unflatten(1, (2, self.features))
        pooled = streams.sum(1).mean((2, 3), keepdim=True)
        mixing = self.sk_expand(F.relu(self.sk_reduce_bn(self.sk_reduce(pooled))))
        return (streams * mixing.unflatten(1, (2, self.features)).softmax(1)).sum(1)


class Whole(nn.Module):
    """What every network here has: normalisation in front, the projection head and the classifier behind."""

    def __init__(self, fields: dict):
        super().__init__()
        mean, std = fields["mean"], fields["std"]
        self.normalizes = bool(mean)
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)

    def add_heads(self, out: int, fields: dict) -> None:
        """The heads for features `[n, out]`."""
        # Of a head with a classifier in its middle, only the layers below that may be there.
        self.layers, self.held = fields["projection_layers"], fields["projection_held"]
        sizes = [out]
        self.projection = nn.ModuleDict()
        for i in range(self.held):
            last = i == self.layers - 1
            sizes.append(fields["projection_dim"] if last else out)
            norm = nn.BatchNorm1d(sizes[-1])
            if last:
                norm.register_parameter("bias", None)
            self.projection[f"dense{i}"] = nn.Linear(sizes[-2], sizes[-1], bias=False)
            self.projection[f"norm{i}"] = norm
        self.probe_layer = fields["probe_layer"]
        self.fc = nn.Linear(sizes[self.probe_layer], fields["classes"]) if fields["classes"] else None

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Images `[n, c, h, w]` in [0, 1], as the network takes them."""
        return (images - self.mean) / self.std if self.normalizes else images

    def heads(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """projection_1 and so on, projection and logits of features `[n, d]`."""
        ends, hidden = {}, [features]
        for i in range(self.held):
            x = self.projection[f"norm{i}"](self.projection[f"dense{i}"](hidden[-1]))
            hidden.append(x if i == self.layers - 1 else F.relu(x))
            ends[f"projection_{i + 1}"] = hidden[-1]
        if self.held == self.layers:
            ends["projection"] = hidden[-1]
        if self.fc is not None:
            ends["logits"] = self.fc(hidden[self.probe_layer])
        return ends


class SimCLRResNet(Whole):
    """Images `[n, channels, h, w]`, float in [0, 1], to a dict of endpoints.

    initial_conv, initial_max_pool, block_group1..4 `[n, c, h', w']`, final_avg_pool `[n, d]` (the features),
    projection_1 and so on, projection `[n, dim]` and logits `[n, classes]`, as far as the model has them.
    `fields` is the .json beside the weights; images are normalised by its mean and std, if any.
    """

    def __init__(self, fields: dict):
        super().__init__(fields)

        def width(features: int) -> int:
            return max(1, round(features * fields["width"]))

        self.pools = fields["stem"] == "imagenet"
        self.original = fields["variant"] == "original"
        self.three = bool(fields["sk_ratio"]) and self.pools
        before = fields["channels"]
        kernel, stride, padding = STEMS[fields["stem"]]
        if self.three:  # ResNet-D: three 3×3 instead of one 7×7
            half = width(32)
            self.stem_conv0, self.stem_bn0 = conv(before, half, 3, 2), nn.BatchNorm2d(half)
            self.stem_conv1, self.stem_bn1 = conv(half, half, 3), nn.BatchNorm2d(half)
            before, kernel, stride, padding = half, 3, 1, 1
        out = width(64)
        self.conv1 = nn.Conv2d(before, out, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(out)

        self.groups = len(fields["blocks"])
        for group, count in enumerate(fields["blocks"], 1):
            blocks = []
            for i in range(count):
                features, stride = width(64 * 2 ** (group - 1)), 2 if group > 1 and i == 0 else 1
                after = features * (4 if fields["bottleneck"] else 1)
                project = i == 0 and (self.original or stride > 1 or out != after)
                kinds = (fields["bottleneck"], fields["sk_ratio"], fields["se_ratio"])
                blocks.append(Block(out, features, stride, project, *kinds))
                out = after
            setattr(self, f"layer{group}", nn.Sequential(*blocks))

        self.add_heads(out, fields)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The endpoints."""
        ends = {}
        x = self.normalize(images)
        if self.three:
            x = F.relu(self.stem_bn0(self.stem_conv0(x)))
            x = F.relu(self.stem_bn1(self.stem_conv1(x)))
        x = ends["initial_conv"] = self.conv1(x)
        x = F.relu(self.bn1(x))
        if self.pools:
            x = max_pool_same(x) if self.original else F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        ends["initial_max_pool"] = x
        for group in range(1, self.groups + 1):
            x = ends[f"block_group{group}"] = getattr(self, f"layer{group}")(x)
        ends["final_avg_pool"] = x.mean((2, 3))
        return ends | self.heads(ends["final_avg_pool"])


def load(weights_path: str) -> SimCLRResNet:
    """The model of a .pth or .safetensors file and of the .json beside it, for evaluation.

    Raises:
      FileNotFoundError: one of the two is missing.
      RuntimeError: the weights are of another model.
    """
    path = str(weights_path)
    with open(f"{path.rpartition('.')[0]}.json") as file:
        fields = json.load(file)
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        weights = load_file(path)
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    model = SimCLRResNet(fields)
    model.load_state_dict(weights)
    return model.eval()
