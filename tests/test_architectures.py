"""`recognise` names architectures that cannot be converted, and only these.

The state dicts hold only names and shapes, which follow the projects' definitions.
"""

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_convert_torch import shapes_of

from simclr_jax.convert import architectures
from simclr_jax.convert import torch as convert_torch
from simclr_jax.convert.google_tf import name_based
from simclr_jax.errors import SimclrError

BLOCKS = {18: (2, 2, 2, 2), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def resnet(depth, groups=1, base=64):
    """torchvision's bottleneck ResNet; 3×3 convolutions have `groups` groups of base/64 times the width."""
    shapes = shapes_of(BLOCKS[depth], True, 7, classes=1000)
    for g in range(1, 5):
        inner = 64 * 2 ** (g - 1) * base // 64 * groups
        for b in range(BLOCKS[depth][g - 1]):
            block = f"layer{g}.{b}"
            shapes[f"{block}.conv1.weight"] = (inner, *shapes[f"{block}.conv1.weight"][1:])
            shapes[f"{block}.conv2.weight"] = (inner, inner // groups, 3, 3)
            shapes[f"{block}.conv3.weight"] = (shapes[f"{block}.conv3.weight"][0], inner, 1, 1)
            for norm in ("bn1", "bn2"):
                for leaf in ("weight", "bias", "running_mean", "running_var"):
                    shapes[f"{block}.{norm}.{leaf}"] = (inner,)
    return shapes


def deep(shapes, stem="conv1"):
    """Gives `shapes` timm's deep stem and pooled shortcuts (`resnet50d`)."""
    shapes = {key: shape for key, shape in shapes.items() if not key.startswith(("conv1.", "downsample"))}
    shapes |= {
        f"{stem}.0.weight": (32, 3, 3, 3),
        f"{stem}.1.weight": (32,),
        f"{stem}.3.weight": (32, 32, 3, 3),
    }
    shapes |= {f"{stem}.4.weight": (32,), f"{stem}.6.weight": (64, 32, 3, 3)}
    return {
        key.replace("downsample.1", "downsample.2").replace("downsample.0", "downsample.1"): shape
        for key, shape in shapes.items()
    }


def squeezed(shapes, name="se.fc1"):
    return {**shapes, f"layer1.0.{name}.weight": (16, 256, 1, 1), f"layer1.0.{name}.bias": (16,)}


def vit(width, blocks, patch):
    """A ViT by the names of timm, DeiT, DINO and MAE."""
    shapes = {"cls_token": (1, 1, width), "patch_embed.proj.weight": (width, 3, patch, patch)}
    for i in range(blocks):
        shapes |= {f"blocks.{i}.norm1.weight": (width,), f"blocks.{i}.attn.qkv.weight": (3 * width, width)}
    return shapes


def convnext(counts, width):
    """torchvision's ConvNeXt."""
    shapes = {"features.0.0.weight": (width, 3, 4, 4)}
    for stage, count in enumerate(counts):
        for b in range(count):
            wide = width * 2**stage
            shapes[f"features.{2 * stage + 1}.{b}.layer_scale"] = (wide, 1, 1)
            shapes[f"features.{2 * stage + 1}.{b}.block.0.weight"] = (wide, 1, 7, 7)
    return shapes


def densenet(counts):
    return {"features.conv0.weight": (64, 3, 7, 7)} | {
        f"features.denseblock{i}.denselayer{j}.conv1.weight": (128, 64, 1, 1)
        for i, count in enumerate(counts, 1)
        for j in range(1, count + 1)
    }


def hiera():
    """A Hiera: its attention has the names of a ViT, but its widths grow and its patches overlap."""
    shapes = {"patch_embed.proj.weight": (96, 3, 7, 7), "blocks.0.attn.qkv.weight": (288, 96)}
    return shapes | {"blocks.1.attn.qkv.weight": (576, 96), "blocks.2.attn.qkv.weight": (576, 192)}


def vgg16():
    at, widths = (
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6,
    )
    return {f"features.{i}.weight": (w, 3, 3, 3) for i, w in zip(at, widths, strict=True)}


KNOWN = {
    "wide_resnet50_2": (resnet(50, base=128), "a wide ResNet-50-2 (bottleneck width 128 in stage 1, not 64)"),
    "wide_resnet101_2": (resnet(101, base=128), "a wide ResNet-101-2 ("),
    "resnext50_32x4d": (resnet(50, 32, 4), "a ResNeXt-50 32x4d (32 groups"),
    "resnext101_32x8d": (resnet(101, 32, 8), "a ResNeXt-101 32x8d (32 groups"),
    "resnext101_64x4d": (resnet(101, 64, 4), "a ResNeXt-101 64x4d (64 groups"),
    "resnet50d": (deep(resnet(50)), "a ResNet-50 with average pooling in its shortcuts (ResNet-D) and a"),
    "resnet26d": (deep(resnet(26)), "a ResNet-26 with average pooling"),
    "seresnet50": (squeezed(resnet(50)), "a ResNet-50 with squeeze-and-excitation"),
    "seresnext50": (squeezed(resnet(50, 32, 4), "se_module.fc1"), "a ResNeXt-50 32x4d (32 groups in its 3×3 "
                    "convolutions) with squeeze-and-excitation"),
    "ecaresnet50": (resnet(50) | {"layer1.0.se.conv.weight": (1, 1, 5)}, "a ResNet-50 with efficient"),
    "resnest50": (deep(resnet(50)) | {"layer1.0.conv2.conv.weight": (128, 32, 3, 3),
                  "layer1.0.conv2.fc1.weight": (32, 64, 1, 1)}, "a ResNeSt-50"),
    "clip's RN50": ({**resnet(50), "conv1.weight": (32, 3, 3, 3), "conv2.weight": (32, 32, 3, 3),
                     "conv3.weight": (64, 32, 3, 3)}, "a ResNet-50 with a stem of three 3×3"),
    "vit_b_16": (vit(768, 12, 16), "a Vision Transformer, ViT-B/16 (width 768, 12 blocks, patches of 16"),
    "vit_large_patch14": (vit(1024, 24, 14), "a Vision Transformer, ViT-L/14 ("),
    "an odd vit": (vit(100, 3, 8), "a Vision Transformer, ViT (width 100, 3 blocks"),
    "torchvision's vit": (
        {"conv_proj.weight": (384, 3, 16, 16)} | {
            f"encoder.layers.encoder_layer_{i}.self_attention.in_proj_weight": (1152, 384) for i in range(12)
        }, "ViT-S/16"),
    "swin": ({"layers.0.blocks.0.attn.relative_position_bias_table": (169, 3),
              "layers.0.blocks.0.attn.qkv.weight": (288, 96), "patch_embed.proj.weight": (96, 3, 4, 4)},
             "a Swin Transformer"),
    "efficientnet_b0": ({"features.1.0.block.0.0.weight": (32, 1, 3, 3),
                         "features.1.0.block.1.fc1.weight": (8, 32, 1, 1)}, "an EfficientNet"),
    "timm's efficientnet": ({"conv_stem.weight": (32, 3, 3, 3), "blocks.0.0.conv_dw.weight": (32, 1, 3, 3),
                             "blocks.0.0.se.conv_reduce.weight": (8, 32, 1, 1)}, "EfficientNet family"),
    "mobilenet_v3": ({"features.1.block.1.fc1.weight": (8, 16, 1, 1)}, "a MobileNetV3"),
    "convnext_tiny": (convnext((3, 3, 9, 3), 96), "a ConvNeXt-Tiny"),
    "convnext_base": (convnext((3, 3, 27, 3), 128), "a ConvNeXt-Base"),
    "densenet121": (densenet((6, 12, 24, 16)), "a DenseNet-121"),
    "densenet169": (densenet((6, 12, 32, 32)), "a DenseNet-169"),
    "vgg16": (vgg16(), "a VGG-16"),
    "preact_resnet18": (
        {"layer2.0.bn1.weight": (64,), "layer2.0.conv1.weight": (128, 64, 3, 3)}
        | {f"layer{g}.{b}.conv1.weight": (64, 64, 3, 3) for g in (1, 3, 4) for b in (0, 1)}
        | {"layer2.1.conv1.weight": (128, 128, 3, 3)}, "a pre-activation ResNet-18"),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module.encoder_q."])
@pytest.mark.parametrize("name", KNOWN)
def test_known_architectures_have_names(name, prefix):
    shapes, expected = KNOWN[name]
    assert expected in architectures.recognise({prefix + key: shape for key, shape in shapes.items()})


UNNAMED = {
    "resnet18": shapes_of(BLOCKS[18], False, 7),
    "resnet50": resnet(50),
    "timm's resnet26": resnet(26),
    "resnet50 of twice the width": shapes_of(BLOCKS[50], True, 7, width=2.0),
    "cifar": shapes_of((1, 1, 1, 1), True, 3),
    "hiera": hiera(),
    "edgenext": {"stem.0.weight": (24, 3, 4, 4), "stages.0.blocks.0.conv_dw.weight": (24, 1, 3, 3)},
    "odd bottlenecks": {**resnet(50), "layer1.0.conv2.weight": (64, 48, 3, 3)},
    "scalars": dict.fromkeys(resnet(50), ()),
    "empty": {},
}


@pytest.mark.parametrize("name", UNNAMED)
def test_what_is_plain_or_unknown_has_no_name(name):
    assert architectures.recognise(UNNAMED[name]) is None


def small(shapes):
    """Arrays of an eighth of each axis longer than 8, so that the file is small."""
    shrunk = {key: tuple(max(1, n // 8) if n > 8 else n for n in shape) for key, shape in shapes.items()}
    return {key: np.zeros(shape, np.float32) for key, shape in shrunk.items() if not key.endswith("tracked")}


@pytest.mark.parametrize("name", ["wide_resnet50_2", "resnet50d", "seresnet50", "densenet121"])
def test_the_command_says_it_in_one_line(name, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(small(KNOWN[name][0]), file)
    with pytest.raises(SimclrError) as caught:
        convert_torch.convert(file, tmp_path / "run")
    line = str(caught.value)
    assert line.startswith(f"{file}: these are weights of {KNOWN[name][1].split(' (')[0]}")
    assert "which simclr_jax does not read; it reads ResNets of plain" in line
    assert "\n" not in line
    assert not (tmp_path / "run").exists()


def test_without_a_name_the_first_difference_is_told(tmp_path):
    state = small(shapes_of((1, 1, 1, 1), True, 7))
    state["layer3.0.conv2.weight"] = state["layer3.0.conv2.weight"][:, :3]
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(SimclrError, match=r"layer3\.0\.conv2\.weight has the shape"):
        convert_torch.convert(tmp_path / "weights.safetensors", tmp_path / "run")


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("resnet_v1_50/conv1/weights", "TF-Slim's ResNet-50 v1"),
        ("resnet_v2_101/block1/unit_1/bottleneck_v2/conv1/weights", "TF-Slim's ResNet-101 v2"),
        ("efficientnet-b3/stem/conv2d/kernel", "an EfficientNet-b3"),
        ("MobilenetV2/Conv/weights", "a MobileNetV2"),
        ("resnet/block1/unit01/a/standardized_conv2d/kernel", "a BiT"),
    ],
)
def test_tensorflows_names_tell_too(variable, expected):
    with pytest.raises(SimclrError, match=rf"these are weights of {expected}.*; simclr_jax reads SimCLR's"):
        name_based({"global_step": (), variable: (7, 7, 3, 64)}, None, False, "model.ckpt-1")
