"""Names the architecture of weights that cannot be converted, by the names and shapes of their variables.

The variables' names come from torchvision 0.28, timm 1.0, Hugging Face's transformers, and the projects that
published the architectures. Weights that match no line of the tables get no name: a wrong one would mislead.
"""

import re
from collections.abc import Callable, Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]

READ = (
    "it reads ResNets of plain basic or bottleneck blocks (ResNet-18, 34, 50, 101, 152, 200, other numbers "
    "of blocks, any width) with one 7×7 or 3×3 convolution as stem, and ViTs by timm's or torchvision's names"
)
VIT = {  # (width, blocks): size
    (192, 12): "Ti", (384, 12): "S", (768, 12): "B", (1024, 24): "L", (1280, 32): "H", (1408, 40): "g",
    (1536, 40): "g",
}  # fmt: skip
CONVNEXT = {(96, 9): "Tiny", (96, 27): "Small", (128, 27): "Base", (192, 27): "Large", (256, 27): "XLarge"}
DENSENET: dict[tuple[int, ...], int] = {
    (6, 12, 24, 16): 121, (6, 12, 36, 24): 161, (6, 12, 32, 32): 169, (6, 12, 48, 32): 201,
}  # fmt: skip
VGG = {8: 11, 10: 13, 13: 16, 16: 19}  # convolutions: depth


def refusal(where: str, what: str) -> str:
    """The error line that names the architecture `what` of the weights in `where`."""
    return f"{where}: these are weights of {what}, which simclr_jax does not read; {READ}"


def recognise(shapes: Shapes) -> str | None:
    """The architecture of a PyTorch state dict, as "a wide ResNet-50-2 (...)".

    None for plain ResNets and for unknown architectures.

    Args:
      shapes: {name: shape} of the whole file, or of the encoder alone; names may have prefixes.
    """
    for pattern, describe in TORCH:
        found = (re.search(rf"(?:^|\.)({pattern})$", key) for key in shapes)
        match = next(filter(None, found), None)
        if match is None:
            continue
        prefix = match.string[: match.start(1)]
        inside = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        if what := describe(inside) if callable(describe) else describe:
            return what
    return None


def recognise_tf(names: Iterable[str]) -> str | None:
    """Like `recognise`, for the variables' names of a TensorFlow checkpoint."""
    for name in names:
        for pattern, what in TENSORFLOW:
            if match := re.search(pattern, name):
                return match.expand(what)
    return None


# ---- ResNets and their kin ------------------------------------------------------------------------

# Variables below layer1.0 that plain blocks do not have.
ADDED = (
    (
        r"(?:se|se_module|se_layer)\.(?:fc1|fc2|conv_reduce|conv_expand|fc\.\d|\d)\.weight",
        "squeeze-and-excitation",
    ),
    (r"(?:se|eca)\.conv\.weight", "efficient channel attention"),
    (r"downsample\.1\.weight", "average pooling in its shortcuts (ResNet-D)"),
)


def _resnet(shapes: Shapes) -> str | None:
    counts = [_count(shapes, rf"layer{group}\.(\d+)\.") for group in (1, 2, 3, 4)]
    bottleneck = "layer1.0.conv3.weight" in shapes
    if not all(counts):
        return None
    depth = (3 if bottleneck else 2) * sum(counts) + 2
    if "layer1.0.convs.0.weight" in shapes:
        return f"a Res2Net-{depth}"
    if {"layer1.0.conv2.conv.weight", "layer1.0.conv2.fc1.weight"} <= shapes.keys():
        return f"a ResNeSt-{depth} (split attention)"
    if "bn1.weight" not in shapes and _before(shapes, "layer2.0"):
        return f"a pre-activation ResNet-{depth} (ResNet v2)"
    name = (bottleneck and _widened(shapes, depth)) or f"a ResNet-{depth}"
    added = [text for pattern, text in ADDED if _has(shapes, rf"layer1\.0\.{pattern}")]
    stems = [[f"{stem}.{i}.weight" for i in (0, 3)] for stem in ("conv1", "stem")]
    if any(_rank(shapes, first) == _rank(shapes, second) == 4 for first, second in stems):
        added.append("a deep stem of three 3×3 convolutions")
    elif _rank(shapes, "conv2.weight") == _rank(shapes, "conv3.weight") == 4:
        added.append("a stem of three 3×3 convolutions, as CLIP has it")
    if added:
        return f"{name} with {' and '.join(added)}"
    return name if name != f"a ResNet-{depth}" else None


def _widened(shapes: Shapes, depth: int) -> str:
    """The name of a ResNeXt or wide ResNet, from the 3×3 convolution of stage 1; "" for a plain one."""
    first, middle, last = (shapes.get(f"layer1.0.conv{i}.weight", ()) for i in (1, 2, 3))
    stem = shapes.get("bn1.weight", ())
    if not (len(first) == len(middle) == len(last) == 4 and len(stem) == 1) or middle[0] != first[0]:
        return ""
    inner, each = middle[:2]
    if not each or inner % each or not stem[0] or last[0] != 4 * stem[0]:
        return ""
    groups = inner // each
    if groups > 1:
        return f"a ResNeXt-{depth} {groups}x{each}d ({groups} groups in its 3×3 convolutions)"
    if inner <= stem[0] or inner % stem[0]:
        return ""
    return f"a wide ResNet-{depth}-{inner // stem[0]} (bottleneck width {inner} in stage 1, not {stem[0]})"


def _before(shapes: Shapes, block: str) -> bool:
    """Whether the first BatchNorm of a block comes before its first convolution."""
    norm, conv = (shapes.get(f"{block}.{name}.weight", ()) for name in ("bn1", "conv1"))
    return len(norm) == 1 and len(conv) == 4 and norm[0] == conv[1] != conv[0]


# ---- others ---------------------------------------------------------------------------------------


def _vit(attention: str, patches: str) -> Callable[[Shapes], str | None]:
    """Describes a transformer of one width; `attention`: a weight of every block, `patches`: the first."""

    def describe(shapes: Shapes) -> str | None:
        conv, weights = shapes.get(patches, ()), [shapes[key] for key in shapes if re.match(attention, key)]
        square = len(conv) == 4 and conv[2] == conv[3]
        if not square or any(shape[1:] != conv[:1] for shape in weights):
            return None
        width, count = conv[0], len(weights)
        size = VIT.get((width, count))
        name = f"ViT-{size}/{conv[2]}" if size else "ViT"
        return f"a Vision Transformer, {name} (width {width}, {count} blocks, patches of {conv[2]} pixels)"

    return describe


def _convnext(depthwise: str, stage3: str, stem: str) -> Callable[[Shapes], str | None]:
    """Describes a ConvNeXt; `depthwise`: its first 7×7 convolution, `stage3`: a pattern of block numbers."""

    def describe(shapes: Shapes) -> str | None:
        conv = shapes.get(stem, ())
        if len(conv) != 4 or shapes[depthwise] != (conv[0], 1, 7, 7):
            return None
        version = " V2" if any(".grn." in key for key in shapes) else ""
        size = CONVNEXT.get((conv[0], _count(shapes, stage3)))
        return f"a ConvNeXt{version}-{size}" if size and not version else f"a ConvNeXt{version}"

    return describe


def _resnet_v2_of_timm(shapes: Shapes) -> str | None:
    conv = "stages.0.blocks.0.conv3.weight"
    return "a pre-activation ResNet (ResNet v2, BiT)" if _rank(shapes, conv) == 4 else None


def _densenet(shapes: Shapes) -> str:
    blocks = tuple(_count(shapes, rf"features\.denseblock{i}\.denselayer(\d+)\.") for i in range(1, 5))
    return f"a DenseNet-{DENSENET[blocks]}" if blocks in DENSENET else "a DenseNet"


def _plain_features(shapes: Shapes) -> str | None:
    """Describes VGG or AlexNet, whose convolutions are `features.N`."""
    convs = [
        key for key, shape in shapes.items() if re.match(r"features\.\d+\.weight$", key) and len(shape) == 4
    ]
    if shapes["features.0.weight"][2:] == (11, 11):
        return "an AlexNet"
    if all(shapes[key][2:] == (3, 3) for key in convs) and len(convs) in VGG:
        return f"a VGG-{VGG[len(convs)]}"
    return None


def _efficientnet_of_timm(shapes: Shapes) -> str | None:
    if not _has(shapes, r"blocks\.0\.0\.conv_dw\.weight"):
        return None
    if "conv_head.bias" in shapes:
        return "a network of the MobileNetV3 family"
    excited = _has(shapes, r"blocks\.\d+\.\d+\.se\.conv_reduce\.weight")
    return "a network of the EfficientNet family" if excited else None


def _count(shapes: Shapes, pattern: str) -> int:
    """The number of different values of the pattern's group."""
    return len({match[1] for key in shapes if (match := re.match(pattern, key))})


def _has(shapes: Shapes, pattern: str) -> bool:
    """Whether a variable matches that has more axes than BatchNorm's."""
    return any(len(shape) > 1 and re.match(rf"{pattern}$", key) for key, shape in shapes.items())


def _rank(shapes: Shapes, name: str) -> int:
    return len(shapes.get(name, ()))


Describe = str | Callable[[Shapes], str | None]
# (pattern of a variable's name past any prefix, the architecture or a function of the names past that prefix)
TORCH: tuple[tuple[str, Describe], ...] = (
    (r"stage2\.0\.branches\.0\.0\.conv1\.weight", "an HRNet"),
    (r"layer1\.0\.conv[12]\.paths\.0\.conv\.weight", "a ResNet with selective kernels, by timm's names"),
    (r"layer1\.0\.conv1\.weight", _resnet),
    (r"stages\.0\.blocks\.0\.norm3\.weight", _resnet_v2_of_timm),
    (r"res2\.0\.conv1\.weight", "a ResNet by Detectron2's names"),
    (r"encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight", "a ResNet by transformers' names"),
    (r"layers\.0\.blocks\.0\.attn\.(?:relative_position_bias_table|logit_scale)", "a Swin Transformer"),
    (r"features\.1\.0\.attn\.(?:relative_position_bias_table|logit_scale)", "a Swin Transformer"),
    (r"blocks\.0\.attn\.qkv\.weight", _vit(r"blocks\.(\d+)\.attn\.qkv\.weight", "patch_embed.proj.weight")),
    (
        r"encoder\.layers\.encoder_layer_0\.self_attention\.in_proj_weight",
        _vit(r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_weight", "conv_proj.weight"),
    ),
    (
        r"transformer\.resblocks\.0\.attn\.in_proj_weight",
        _vit(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_weight", "conv1.weight"),
    ),
    (
        r"embeddings\.patch_embeddings\.projection\.weight",
        _vit(
            r"encoder\.layer\.(\d+)\.attention\.attention\.query\.weight",
            "embeddings.patch_embeddings.projection.weight",
        ),
    ),
    (
        r"features\.1\.0\.block\.0\.weight",
        _convnext("features.1.0.block.0.weight", r"features\.5\.(\d+)\.", "features.0.0.weight"),
    ),
    (
        r"stages\.0\.blocks\.0\.conv_dw\.weight",
        _convnext("stages.0.blocks.0.conv_dw.weight", r"stages\.2\.blocks\.(\d+)\.", "stem.0.weight"),
    ),
    (
        r"stages\.0\.0\.dwconv\.weight",
        _convnext("stages.0.0.dwconv.weight", r"stages\.2\.(\d+)\.", "downsample_layers.0.0.weight"),
    ),
    (r"features\.denseblock1\.denselayer1\.conv1\.weight", _densenet),
    (r"features\.\d+\.\d+\.block\.\d+\.fc1\.weight", "an EfficientNet"),
    (r"_blocks\.0\._depthwise_conv\.weight", "an EfficientNet"),
    (r"conv_stem\.weight", _efficientnet_of_timm),
    (r"features\.\d+\.block\.\d+\.fc1\.weight", "a MobileNetV3"),
    (r"features\.2\.conv\.0\.0\.weight", "a MobileNetV2"),
    (r"trunk_output\.block1\.block1-0\.f\.a\.0\.weight", "a RegNet"),
    (r"s1\.b1\.conv2\.conv\.weight", "a RegNet"),
    (r"Mixed_5b\.branch1x1\.conv\.weight", "an Inception v3"),
    (r"inception3a\.branch1\.conv\.weight", "a GoogLeNet"),
    (r"features\.3\.squeeze\.weight", "a SqueezeNet"),
    (r"features\.0\.weight", _plain_features),
)
TENSORFLOW = (  # (pattern of a variable's name, the architecture)
    (r"^resnet_v([12])_(\d+)/", r"TF-Slim's ResNet-\2 v\1"),
    (r"^efficientnet-(\w+)/", r"an EfficientNet-\1"),
    (r"^Inception(?:V|ResnetV)\d", "an Inception network"),
    (r"^Mobilenet(V\d)", r"a MobileNet\1"),
    (r"^vgg_(\d+)/", r"a VGG-\1"),
    (r"(?:^|/)block1/unit01/a/", "a BiT (ResNet v2)"),
)
