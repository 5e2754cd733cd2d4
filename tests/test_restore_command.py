"""`python -m simclr_jax.restore`: whole images in and out, and the comparison with clean ones."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image, ImageCms
from test_restore import restoring

from simclr_jax import tiles
from simclr_jax.config import CONFIG_FILE, to_json
from simclr_jax.convert import workdir as conversion
from simclr_jax.losses import reconstruction
from simclr_jax.measures import pictures
from simclr_jax.models import restorer, simclr
from simclr_jax.restore import baselines, compare, run
from simclr_jax.restore.__main__ import main

SIZES = {"a.png": (20, 28), "deep/b.bmp": (33, 17), "c.jpg": (8, 8)}


def written(workdir, config, brighter=0.0):
    """The workdir of a run that gives every image back, `brighter`: its residual is 0, or a constant."""
    example = jax.ShapeDtypeStruct((config.data.image_size,) * 2 + (config.data.channels,), np.float32)
    model = restorer.create(config.model, example)
    shapes = jax.eval_shape(lambda: simclr.init(model, jax.random.key(1), simclr.sample(example)))
    rng = np.random.default_rng(2)  # compiling the initialisation would take seconds
    variables = jax.tree.map(lambda x: 0.1 * rng.standard_normal(x.shape, np.float32) ** 2, shapes)
    variables["params"]["decoder"]["out"] = {
        "kernel": np.zeros_like(variables["params"]["decoder"]["out"]["kernel"]),
        "bias": np.full(config.data.channels, brighter, np.float32),
    }
    conversion.write(workdir, config, variables, step=7, origin="nothing")
    return str(workdir)


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """A run that gives RGB images back."""
    return written(tmp_path_factory.mktemp("runs") / "still", restoring(data__channels=3))


@pytest.fixture
def photos(tmp_path):
    """(folder of small images of several sizes, {name: pixels})."""
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    (folder / "deep").mkdir(parents=True)
    pixels = {name: rng.integers(0, 256, (*size, 3), np.uint8) for name, size in SIZES.items()}
    for name, image in pixels.items():
        Image.fromarray(image).save(folder / name)
        pixels[name] = np.asarray(Image.open(folder / name))  # JPEG loses
    return folder, pixels


def called(capsys, *words):
    """(exit code, standard output, the line on standard error)."""
    try:
        main([str(word) for word in words])
        code = 0
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("tile", [512, 32])
def test_the_identity_gives_files_back(still, photos, tmp_path, capsys, monkeypatch, tile):
    """Whole, and in tiles; images of any size and kind become PNG under their names."""
    folder, pixels = photos
    monkeypatch.setattr(run, "OVERLAP", 8)
    if tile == 32:
        big = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
        Image.fromarray(big).save(folder / "big.png")
        pixels = {**pixels, "big.png": big}
    out = tmp_path / "out"
    code, said, _ = called(capsys, "--workdir", still, "--images", folder, "--out", out, "--tile", tile)
    assert (code, said.strip().splitlines()[-1]) == (0, str(out))
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert found == sorted(name.rsplit(".", 1)[0] + ".png" for name in pixels)
    for name, image in pixels.items():
        assert np.array_equal(np.asarray(Image.open((out / name).with_suffix(".png"))), image)


def test_what_the_network_says_is_written(photos, tmp_path, capsys):
    """Gray images, by a network that makes them brighter; one file is an image folder too."""
    folder, pixels = photos
    run_ = written(tmp_path / "run", restoring(), brighter=20 / 255)
    code, *_ = called(capsys, "--workdir", run_, "--images", folder / "a.png", "--out", tmp_path / "out")
    gray = np.rint(pixels["a.png"] @ np.array([0.299, 0.587, 0.114]))
    assert code == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png")), np.minimum(gray + 20, 255))


def test_a_network_of_one_size_restores_any_image(tmp_path):
    config = restoring(model__decoder__start="features", model__decoder__skips=False)
    network = run.Restorer(written(tmp_path / "run", config))
    assert network.stride == 0
    image = np.random.default_rng(0).random((21, 30, 1), np.float32)
    assert np.abs(network(image) - image).max() < 1e-6


def test_the_stride_is_the_encoders(still):
    assert run.Restorer(still).stride == 8  # three convolutions of stride 2


def test_the_stride_is_the_encoders_for_a_side_that_is_no_multiple(tmp_path):
    network = run.Restorer(written(tmp_path / "run", restoring(data__image_size=28)))
    assert network.stride == 8  # maps of 4 × 4, not of 7 pixels each


def test_images_of_many_sizes_need_few_programs(still):
    network, shapes = run.Restorer(still), []

    def apply(variables, x):
        shapes.append(x.shape)
        return np.zeros_like(x)

    network._apply = apply
    for h, w in ((1, 64), (50, 3), (64, 65), (33, 128)):
        assert network(np.zeros((h, w, 3), np.float32), tile=128).shape == (h, w, 3)
    assert {*shapes} == {(1, 64, 64, 3), (1, 64, 128, 3)}
    network(np.zeros((16, 129, 3), np.float32), tile=128)
    assert shapes[-1] == (4, 128, 128, 3)  # a longer side than a tile


def test_more_pixels(photos, tmp_path, capsys):
    folder, pixels = photos
    config = restoring(data__channels=3, restore__corruption="fewer_pixels", restore__scale=4)
    words = ("--workdir", written(tmp_path / "run", config), "--images", folder / "a.png")
    assert called(capsys, *words, "--out", tmp_path / "out")[0] == 0
    found = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    for c in range(3):
        plane = Image.fromarray(pixels["a.png"][..., c].astype(np.float32))
        bicubic = np.asarray(plane.resize((112, 80), Image.Resampling.BICUBIC))
        assert np.abs(found[..., c] - np.clip(bicubic, 0, 255)).max() < 0.51


def test_an_ensemble_of_the_identity_is_the_identity(still, photos, tmp_path, capsys, monkeypatch):
    (folder, pixels), calls, ensembled = photos, [], tiles.ensembled

    def counted(image, function):
        calls.append(image.shape)
        return ensembled(image, function)

    monkeypatch.setattr(tiles, "ensembled", counted)
    words = ("--workdir", still, "--images", folder, "--out")
    assert called(capsys, *words, tmp_path / "plain")[0] == 0
    assert not calls
    assert called(capsys, *words, tmp_path / "out", "--ensemble")[0] == 0
    assert len(calls) == len(pixels)
    compared = called(capsys, *words, tmp_path / "compared", "--ensemble", "--corrupt", "--baselines=")
    assert compared[0] == 0
    assert "restored, mean of eight orientations" in compared[1]
    assert len(calls) == 2 * len(pixels)
    for name, image in pixels.items():
        found = Image.open((tmp_path / "out" / name).with_suffix(".png"))
        np.testing.assert_array_equal(np.asarray(found), image)


def test_masks_tell_the_holes(photos, tmp_path, capsys):
    folder, pixels = photos
    config = restoring(data__channels=3, restore__corruption="holes")
    words = ["--workdir", written(tmp_path / "run", config), "--images", folder / "a.png", "--out",
             tmp_path / "out"]  # fmt: skip
    assert "name the folder of masks" in called(capsys, *words)[2]
    hole = np.zeros((20, 28), np.uint8)
    hole[5:9, 10:20] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(hole).save(tmp_path / "masks" / "a.png")
    assert called(capsys, *words, "--masks", tmp_path / "masks")[0] == 0
    found, image = np.asarray(Image.open(tmp_path / "out" / "a.png")), pixels["a.png"]
    assert np.array_equal(found[hole == 0], image[hole == 0])
    mean = image[hole == 0].mean(axis=0)
    assert np.abs(found[hole > 0] - mean).max() <= 0.5 + 1e-3


def test_masks_that_do_not_fit(photos, tmp_path, capsys):
    """One that is missing ends all before anything is written; others leave their image out."""
    folder, _ = photos
    config, masks = restoring(data__channels=3, restore__corruption="holes"), tmp_path / "masks"
    words = ["--workdir", written(tmp_path / "run", config), "--images", folder, "--out", tmp_path / "out",
             "--masks", masks]  # fmt: skip
    (masks / "deep").mkdir(parents=True)
    hole = np.full((20, 28), 255, np.uint8)
    hole[:10] = 0
    Image.fromarray(hole).save(masks / "a.png")
    (masks / "c.jpg").write_bytes(b"no image")
    code, _, err = called(capsys, *words)
    assert (code, err) == (2, f"error: --masks={masks}: has no deep/b.bmp\n")
    assert not (tmp_path / "out").exists()
    Image.fromarray(hole).save(masks / "deep" / "b.png")
    code, out, err = called(capsys, *words)
    assert (code, err) == (
        2,
        "error: 2 of 3 files could not be read: c.jpg, deep/b.bmp; the others are done\n",
    )
    assert f"c.jpg: left out: its mask {masks / 'c.jpg'}: " in out
    assert f"deep/b.bmp: left out: its mask {masks / 'deep' / 'b.png'} has another size" in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_what_is_beside_the_pixels(photos, tmp_path, capsys):
    """Turned as EXIF says, gray stays gray, the profile is kept, transparency is told."""
    folder, out = tmp_path / "mine", tmp_path / "out"
    folder.mkdir()
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (20, 28, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    Image.fromarray(image).save(folder / "turned.png", exif=exif)
    Image.fromarray(image[..., 0]).save(folder / "gray.png")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(image).save(folder / "profile.png", icc_profile=profile)
    gray = np.repeat(image[..., :1], 3, axis=-1)
    Image.fromarray(gray).save(folder / "gray_profile.png", icc_profile=profile)
    opaque = np.concatenate([image, np.full((20, 28, 1), 255, np.uint8)], axis=-1)
    Image.fromarray(opaque).save(folder / "opaque.png")
    clear = np.concatenate([image, np.zeros((20, 28, 1), np.uint8)], axis=-1)
    Image.fromarray(clear).save(folder / "clear.png")
    made = written(tmp_path / "run", restoring(data__channels=3))
    code, said, _ = called(capsys, "--workdir", made, "--images", folder, "--out", out)
    assert code == 0
    assert "1 had transparent pixels: they lie over white now" in said
    found = {path.name: Image.open(path) for path in out.iterdir()}
    np.testing.assert_array_equal(np.asarray(found["turned.png"]), np.rot90(image, -1))
    assert found["gray.png"].mode == "L"
    np.testing.assert_array_equal(np.asarray(found["gray.png"]), image[..., 0])
    assert found["gray_profile.png"].mode == "L"
    assert "icc_profile" not in found["gray_profile.png"].info  # one of RGB
    np.testing.assert_array_equal(np.asarray(found["opaque.png"]), image)
    assert found["profile.png"].info["icc_profile"] == profile
    assert np.all(np.asarray(found["clear.png"]) == 255)
    assert found["clear.png"].info.get("icc_profile") is None


def test_unreadable_files_are_told_and_left_out(still, photos, tmp_path, capsys):
    folder, _ = photos
    (folder / "broken.png").write_bytes(b"no image")
    code, out, err = called(capsys, "--workdir", still, "--images", folder, "--out", tmp_path / "out")
    assert code == 2
    assert "broken.png: left out: " in out
    assert err == "error: 1 of 4 files could not be read: broken.png; the others are done\n"
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3


def test_mistakes_are_one_line(still, photos, tmp_path, capsys):
    folder, _ = photos
    (tmp_path / CONFIG_FILE).write_text(to_json(tiny_config(), {}))
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "x").touch()
    good = {"workdir": still, "images": folder, "out": tmp_path / "out"}
    for changes, told in (
        ({"workdir": ""}, "--workdir is missing: for example --workdir=runs/restore"),
        ({"workdir": "/nowhere"}, "/nowhere: no config.json there"),
        ({"workdir": tmp_path}, "is a run of task 'pretrain', which restores nothing"),
        ({"images": "/nowhere"}, "--images=/nowhere: no such folder or file"),
        ({"images": empty}, f"--images={empty}: no image file there"),
        ({"out": full}, f"--out={full}: is not empty; give a new folder, or --again"),
        ({"out": full / "x"}, "is a file; give a folder"),
        ({"out": folder / "out"}, "must be apart from --images"),
        ({"tile": 3}, "--tile=3: must be 32 pixels or more"),
        ({"beside": still}, "--beside: compares restored images with clean ones: add --corrupt"),
        ({"masks": folder}, "--masks="),
        ({"step": 3}, "3"),
        ({"nonsense": 1}, "'--nonsense=1': not understood; see --help"),
    ):
        words = (f"--{name}={value}" for name, value in {**good, **changes}.items())
        code, _, err = called(capsys, *words)
        assert code == 2, changes
        assert err.startswith("error: ")
        assert told in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_scikit_image_it_is_one_line(still, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "pywt", None)
    words = ("--workdir", still, "--images", photos[0], "--out", tmp_path / "out", "--corrupt")
    code, _, err = called(capsys, *words)
    assert code == 2
    assert "pip install 'simclr_jax[restore]', or give --baselines= for none" in err
    assert "must be one or more of nlm, wavelet" in called(capsys, *words, "--baselines=median")[2]


def test_the_comparison_is_what_its_files_say(still, tmp_path, capsys, monkeypatch):
    """Scores of the input, of a baseline's better setting, of another run, and of the run itself."""
    folder, rng = tmp_path / "clean", np.random.default_rng(3)
    (folder / "deep").mkdir(parents=True)
    # Of one size: a program for every size takes seconds.
    pixels = {name: rng.integers(0, 256, (20, 28, 3), np.uint8) for name in ("a.png", "deep/b.png")}
    for name, image in pixels.items():
        Image.fromarray(image).save(folder / name)
    darker = written(tmp_path / "darker", restoring(data__channels=3), brighter=-30 / 255)
    half = {"half": ("half way", (("all", {"by": 1.0}), ("none", {"by": 0.0})), _towards_gray)}
    monkeypatch.setattr(baselines, "load", lambda names: half if names else {})
    out = tmp_path / "out"
    words = ("--workdir", still, "--images", folder, "--out", out, "--corrupt", "--beside", darker)
    code, said, _ = called(capsys, *words)
    assert code == 0
    report = json.loads((out / "report.json").read_text())
    rows = {row["who"]: row for row in report["rows"]}
    assert list(rows) == ["input", "half", f"beside {darker}", "restored"]
    assert (rows["half"]["way"], rows["half"]["ways"]) == ("all", 2)
    config = run.Restorer(still).config
    for number, name in enumerate(sorted(pixels)):
        clean = (pixels[name] / 255).astype(np.float32)
        spoilt, known = compare.corrupted(config, clean, number)
        assert known.min() == 1
        ways = {"input": spoilt, "restored": np.clip(spoilt, 0, 1), "half": np.full_like(clean, 0.5)}
        ways[f"beside {darker}"] = np.clip(spoilt - 30 / 255, 0, 1)
        for who, image in ways.items():
            error = np.mean((image.astype(np.float64) - clean) ** 2)
            assert rows[who]["psnr_each"][number] == pytest.approx(-10 * np.log10(error), abs=1e-4)
            ssim = float(reconstruction.ssim(image[None], clean[None])[0])
            assert rows[who]["ssim_each"][number] == pytest.approx(ssim, abs=1e-4)
    gain = np.subtract(rows["restored"]["psnr_each"], rows["half"]["psnr_each"]).mean()
    assert rows["half"]["psnr_gain"][0] == pytest.approx(gain)
    assert rows["input"]["psnr_gain"][0] > 0  # clipping helps
    page = (out / "report.html").read_text()
    assert report["verdict"] in said
    assert " to " not in report["verdict"]  # no interval of two images
    assert "data:image/png;base64" in page
    assert "best of 2 settings on these images: all" in page
    assert (out / "corrupted" / "deep" / "b.png").exists()
    other = written(tmp_path / "other", restoring(data__channels=3, restore__sigma=50.0))
    told = called(capsys, *words[:-1], other, "--again")[2]
    assert told == f"error: --beside={other}: has config.restore.sigma=50.0, not 25.0\n"


def _towards_gray(image, sigma, options):
    assert sigma == pytest.approx(25 / 255)
    return options["by"] * 0.5 + (1 - options["by"]) * np.sign(image)


def test_ways_of_scikit_image_restore():
    pytest.importorskip("skimage")
    pytest.importorskip("pywt")
    y, x = np.mgrid[:48, :64] / 16
    clean = np.stack([np.sin(y) + np.cos(x)] * 3, axis=-1) / 4 + 0.5
    noisy = clean + 25 / 255 * np.random.default_rng(0).standard_normal(clean.shape)
    for title, ways, function in baselines.load(["nlm", "wavelet"]).values():
        for way, options in ways:
            found = function(noisy.astype(np.float32), 25 / 255, options)
            assert pictures.psnr(found, clean) > pictures.psnr(noisy, clean) + 3, (title, way)


# ---- scores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 56, 3), (9, 30, 1)], ids=str)
def test_scores_are_those_of_the_losses(size):
    rng = np.random.default_rng(0)
    clean = rng.random(size, np.float32)
    found = np.clip(clean + 0.1 * rng.standard_normal(size), 0, 1).astype(np.float32)
    for score in ("psnr", "ssim"):
        theirs = getattr(reconstruction, score)(found[None], clean[None])[0]
        assert getattr(pictures, score)(found, clean) == pytest.approx(float(theirs), abs=1e-4)


def test_intervals_are_of_the_mean():
    values = np.random.default_rng(1).normal(30, 2, 400)
    mean, low, high = pictures.interval(values)
    error = values.std() / np.sqrt(400)
    assert mean == values.mean()
    assert (mean - low) / error == pytest.approx(1.96, abs=0.1)
    assert (high - mean) / error == pytest.approx(1.96, abs=0.1)
    assert pictures.interval([3.0] * 5) == (3, 3, 3)
    assert pictures.interval([3.0] * 4) == (3,)  # too few for an interval


def test_help_imports_no_jax():
    code = (
        "import sys, runpy; sys.argv = ['restore', '--help']\n"
        "try: runpy.run_module('simclr_jax.restore', run_name='__main__')\n"
        "except SystemExit as end: sys.exit(any(x in sys.modules for x in ('jax', 'tensorflow')) or end.code)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
