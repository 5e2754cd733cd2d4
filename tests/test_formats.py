"""Image files of every kind: the same pixels by TensorFlow and by Python, and what is said of them."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import tifffile
from conftest import tiny_config
from PIL import Image, ImageOps

from simclr_jax import encoder, train
from simclr_jax.config import adopt_start, flatten, load_config, set_field, to_json
from simclr_jax.data import decode, formats, memory, notes, pipeline, splits
from simclr_jax.data.formats import Reading
from simclr_jax.data.tf import load as tensorflow
from simclr_jax.errors import SimclrError, UnreadableImagesError

WHITE = (255, 255, 255)
RED = (200, 10, 30)


def noise(*shape, high=256, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


RGBA = noise(6, 5, 4)
RGB = Image.fromarray(RGBA[..., :3])
DEEP = noise(6, 5, high=65_536, dtype=np.uint16)


def encoded(image, kind, **options):
    found = io.BytesIO()
    image.save(found, kind, **options)
    return found.getvalue()


def tiff(array, **options):
    found = io.BytesIO()
    tifffile.imwrite(found, array, **options)
    return found.getvalue()


def png16(array, colour_type):
    """A PNG of 16 bits `[h, w, c]`, by hand: Pillow writes gray ones alone."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def by_tensorflow(data, reading=None):
    return decode.decode(tensorflow().constant(data), reading or Reading()).numpy()


def over(rgba, background=WHITE):
    """In exact fractions: the colour that a painter would mix, rounded."""
    alpha = rgba[..., 3:].astype(np.float64) / 255
    return np.floor(rgba[..., :3] * alpha + np.array(background) * (1 - alpha) + 0.5)


OPAQUE = {
    "png": encoded(RGB, "PNG"),
    "bmp": encoded(RGB, "BMP"),
    "lossless webp": encoded(RGB, "WEBP", lossless=True),
    "tiff": encoded(RGB, "TIFF"),
    "tiff, lzw": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "tiff, planes apart": tiff(np.moveaxis(RGBA[..., :3], -1, 0), photometric="rgb", planarconfig="separate"),
    "tiff, two pages": encoded(RGB, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
}
TRANSPARENT = {
    "png": encoded(Image.fromarray(RGBA), "PNG"),
    "webp": encoded(Image.fromarray(RGBA), "WEBP", lossless=True, exact=True),
    "tiff": tiff(RGBA, photometric="rgb", extrasamples=["unassalpha"]),
}


@pytest.mark.parametrize("kind", OPAQUE)
def test_opaque_files_are_what_was_saved(kind):
    np.testing.assert_array_equal(by_tensorflow(OPAQUE[kind]), RGBA[..., :3])
    np.testing.assert_array_equal(formats.read(OPAQUE[kind], Reading()), RGBA[..., :3])


@pytest.mark.parametrize("background", [WHITE, RED])
@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_lies_over_the_background(kind, background):
    for read in (by_tensorflow, formats.read):
        image = read(TRANSPARENT[kind], Reading(background))
        assert np.abs(image - over(RGBA, background)).max() <= 1  # ties are rounded as they fall
        clear = RGBA.copy()
        clear[..., 3] = 0
        data = encoded(Image.fromarray(clear), "PNG")
        assert (read(data, Reading(background)) == background).all()


def test_a_transparent_entry_of_a_palette():
    palette = Image.fromarray(noise(6, 5, high=8), "P")
    palette.putpalette(noise(8 * 3, seed=1).tolist())
    opaque = np.asarray(palette.convert("RGB"))
    clear = np.asarray(palette) == 2
    for kind in ("PNG", "GIF"):
        data = encoded(palette, kind, transparency=2)
        expected = np.where(clear[..., None], RED, opaque)
        np.testing.assert_array_equal(by_tensorflow(data, Reading(RED)), expected)
        np.testing.assert_array_equal(formats.read(data, Reading(RED)), expected)
    colour = tuple(RGBA[0, 0, :3].tolist())  # a PNG without a palette can name one colour
    image = by_tensorflow(encoded(RGB, "PNG", transparency=colour), Reading(RED))
    assert image[0, 0].tolist() == list(RED)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palettes_and_gray_of_few_bits(bits):
    palette = Image.fromarray(noise(6, 5, high=2**bits), "P")
    palette.putpalette(noise(2**bits * 3, seed=1).tolist())
    data = encoded(palette, "PNG", bits=bits)
    np.testing.assert_array_equal(by_tensorflow(data), np.asarray(palette.convert("RGB")))
    black_and_white = Image.fromarray(noise(6, 5)).convert("1")
    gray = by_tensorflow(encoded(black_and_white, "PNG"))
    np.testing.assert_array_equal(gray[..., 1], 255 * np.asarray(black_and_white))


@pytest.mark.parametrize("orientation", [2, 6, 8])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "TIFF of 16 bits"])
def test_exif_of_other_kinds(kind, orientation):
    exif = Image.Exif()
    exif[formats.ORIENTATION] = orientation
    image = Image.fromarray(DEEP) if "16" in kind else RGB
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = by_tensorflow(encoded(image, kind[:4].strip(), **options))
    data = encoded(image, kind[:4].strip(), exif=exif, **options)
    for read in (by_tensorflow, formats.read):
        np.testing.assert_array_equal(read(data, Reading()), stored)
        turned = formats.turn(stored, orientation)
        np.testing.assert_array_equal(read(data, Reading(exif=True)), turned)


def test_exif_behind_a_large_profile(tmp_path):
    exif = Image.Exif()
    exif[formats.ORIENTATION] = 6
    (tmp_path / "a.jpg").write_bytes(encoded(RGB, "JPEG", exif=exif, icc_profile=bytes(100_000)))
    found = splits.load(f"folder:{tmp_path}", exif=True)
    assert "1 are rotated by EXIF: turned" in "\n".join(found.train.notes)
    batch = next(pipeline.eval_batches(found.train, batch=1, size=5, crop=1.0))
    assert batch["mask"].all()
    assert by_tensorflow((tmp_path / "a.jpg").read_bytes(), Reading(exif=True)).shape == (5, 6, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_file_if_the_config_wants_it(orientation):
    photo = Image.fromarray(noise(3, 5, 3)).resize((40, 24))
    exif = Image.Exif()
    exif[formats.ORIENTATION] = orientation
    data = encoded(photo, "JPEG", exif=exif)
    stored = by_tensorflow(data)
    assert stored.shape == (24, 40, 3)
    again = encoded(Image.fromarray(stored), "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(again))))
    np.testing.assert_array_equal(by_tensorflow(data, Reading(exif=True)), expected)
    np.testing.assert_array_equal(formats.turn(stored, orientation), expected)


# ---- more than 8 bits ---------------------------------------------------------------------------

SIXTEEN = {
    "png, gray": png16(DEEP[..., None], 0),
    "png, gray by Pillow": encoded(Image.fromarray(DEEP), "PNG"),
    "png, colours": png16(np.stack([DEEP] * 3, -1), 2),
    "tiff": tiff(DEEP, photometric="minisblack"),
    "tiff, big-endian": tiff(DEEP, photometric="minisblack", byteorder=">"),
    "tiff, lzw": encoded(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"),
    "tiff, deflate": tiff(DEEP, photometric="minisblack", compression="zlib"),
    "tiff, colours": tiff(np.stack([DEEP] * 3, -1), photometric="rgb"),
    "tiff, float": tiff(DEEP / np.float32(65_535), photometric="minisblack"),
}


@pytest.mark.parametrize("kind", SIXTEEN)
def test_the_full_range_of_16_bits(kind):
    expected = np.floor(DEEP / 65_535 * 255 + 0.5)
    for read in (by_tensorflow, formats.read):
        image = read(SIXTEEN[kind], Reading())
        assert image.shape == (6, 5, 3)
        np.testing.assert_array_equal(image, np.stack([expected] * 3, -1))


@pytest.mark.parametrize("kind", [k for k in SIXTEEN if "float" not in k])
def test_a_window(kind):
    low, high = 10_000, 30_000
    expected = np.rint(255 * np.clip((DEEP.astype(float) - low) / (high - low), 0, 1))
    for read in (by_tensorflow, formats.read):
        image = read(SIXTEEN[kind], Reading(intensity="window", window=(low, high)))
        np.testing.assert_array_equal(image[..., 2], expected)


def test_16_bits_with_alpha():
    alpha = noise(6, 5, high=65_536, dtype=np.uint16, seed=1)
    data = png16(np.stack([DEEP, DEEP, DEEP, alpha], -1), 6)
    exact = DEEP / 65_535 * 255 * (alpha / 65_535) + 255 * (1 - alpha / 65_535)
    for read in (by_tensorflow, formats.read):
        assert np.abs(read(data, Reading())[..., 0] - exact).max() <= 1.5


@pytest.mark.parametrize("options", [{"photometric": "separated"}, {"photometric": "minisblack"},
                                     {"photometric": "rgb", "extrasamples": ["unspecified"]}])  # fmt: skip
def test_a_fourth_channel_that_is_no_opacity_is_none(options):
    """Infrared beside RGB, CMYK, four bands: what they mean is not known."""
    data = tiff(noise(6, 5, 4, high=65_536, dtype=np.uint16), planarconfig="contig", **options)
    with pytest.raises(formats.UnreadableError, match=r"4 channels|SEPARATED"):
        formats.read(data, Reading())


@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha"])
def test_opacity_of_16_bits_in_a_tiff(alpha):
    opacity = noise(6, 5, 1, high=60_000, dtype=np.uint16, seed=1) + np.uint16(5000)
    colours = noise(6, 5, 3, high=65_536, dtype=np.uint16)
    exact = colours / 65_535 * 255 * (opacity / 65_535) + 255 * (1 - opacity / 65_535)
    stored = np.rint(colours * (opacity / 65_535)).astype(np.uint16) if alpha == "assocalpha" else colours
    data = tiff(np.concatenate([stored, opacity], -1), photometric="rgb", extrasamples=[alpha])
    assert np.abs(formats.read(data, Reading()) - exact).max() <= 1.5


def test_signed_float_inverted_and_odd_tiffs():
    signed = tiff(np.array([[-32_768, 0, 32_767]], np.int16), photometric="minisblack")
    assert formats.read(signed, Reading())[0, :, 0].tolist() == [0, 128, 255]
    inverted = tiff(np.array([[0, 65_535]], np.uint16), photometric="miniswhite")
    assert formats.read(inverted, Reading())[0, :, 0].tolist() == [255, 0]
    metres = tiff(np.array([[-3.0, 400.0]], np.float32), photometric="minisblack")
    with pytest.raises(
        formats.UnreadableError, match=r"from -3 to 400 are not in \[0, 1\]: config.data.inten"
    ):
        formats.read(metres, Reading())
    assert formats.read(metres, Reading(intensity="window", window=(0, 200)))[0, :, 0].tolist() == [0, 255]
    holes = tiff(np.array([[0.5, np.nan]], np.float32), photometric="minisblack")
    with pytest.raises(formats.UnreadableError, match="no numbers"):
        formats.read(holes, Reading())
    bands = tiff(noise(6, 5, 13, dtype=np.uint16), photometric="minisblack", planarconfig="contig")
    with pytest.raises(formats.UnreadableError, match="13 channels"):
        formats.read(bands, Reading())


# ---- DICOM --------------------------------------------------------------------------------------


def dicom(stored, photometric="MONOCHROME2", **tags):
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.dataset.FileDataset(None, {}, preamble=b"\0" * 128)
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = pydicom.uid.CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
    file.Rows, file.Columns = stored.shape[:2]
    file.SamplesPerPixel, file.PhotometricInterpretation = (3 if stored.ndim == 3 else 1), photometric
    if stored.ndim == 3:
        file.PlanarConfiguration = 0
    bits = 8 * stored.dtype.itemsize
    file.BitsAllocated, file.BitsStored, file.HighBit = bits, bits, bits - 1
    file.PixelRepresentation = int(stored.dtype.kind == "i")
    for name, value in tags.items():
        setattr(file, name, value)
    file.PixelData = stored.tobytes()
    found = io.BytesIO()
    file.save_as(found, enforce_file_format=True)
    return found.getvalue()


CT = np.arange(-1024, 3072, 137, dtype=np.int16).reshape(5, 6)  # as stored; 1,024 too much


def test_dicom_without_a_window_shows_the_bits_stored():
    twelve = noise(5, 6, high=4096, dtype=np.uint16)
    for photometric, expected in (
        ("MONOCHROME2", np.rint(twelve / 4095 * 255)),
        ("MONOCHROME1", 255 - np.rint(twelve / 4095 * 255)),
    ):
        image = by_tensorflow(dicom(twelve, photometric, BitsStored=12, HighBit=11))
        np.testing.assert_array_equal(image[..., 1], expected)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT"])
def test_dicom_with_a_window_is_what_pydicom_shows(function):
    from pydicom import dcmread, pixels

    data = dicom(CT, RescaleSlope=1, RescaleIntercept=-100, WindowCenter=[40, 600], WindowWidth=[400, 9],
                 VOILUTFunction=function)  # fmt: skip
    file = dcmread(io.BytesIO(data))
    shown = pixels.apply_windowing(pixels.apply_modality_lut(file.pixel_array, file), file)
    low, high = -32_768 - 100, 32_767 - 100  # pydicom scales to the range of the bits stored
    np.testing.assert_allclose(
        formats.read(data, Reading())[..., 0], (shown - low) / (high - low) * 255, atol=0.51
    )


def test_a_window_of_ones_own_is_in_hounsfield_units():
    data = dicom(CT, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    expected = np.rint(255 * np.clip((CT.astype(float) * 2 - 1024 + 1000) / 1400, 0, 1))
    image = formats.read(data, Reading(intensity="window", window=(-1000, 400)))
    np.testing.assert_array_equal(image[..., 0], expected)


def test_dicom_in_colour_and_of_several_frames():
    colour = noise(5, 6, 3)
    np.testing.assert_array_equal(by_tensorflow(dicom(colour, "RGB")), colour)
    frames = noise(2, 6, high=65_536, dtype=np.uint16)
    deep = formats.read_deep(dicom(frames, Rows=1, NumberOfFrames=2), Reading())
    assert deep.frames == 2
    np.testing.assert_array_equal(deep.values, frames[:1])


@pytest.mark.parametrize("tags", [
    {"WindowCenter": None, "WindowWidth": None}, {"WindowWidth": 400}, {"RescaleSlope": None},
])  # fmt: skip
def test_elements_of_dicom_that_are_empty_are_none(tags):
    plain, odd = dicom(CT), dicom(CT, **tags)
    np.testing.assert_array_equal(formats.read(odd, Reading()), formats.read(plain, Reading()))


def test_dicom_without_pydicom_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "1.dcm").write_bytes(dicom(DEEP))
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(SimclrError, match=r"pip install 'simclr_jax\[dicom\]'"):
        splits.load(f"folder:{tmp_path}")


# ---- what is said, and the window of percentiles ------------------------------------------------


def folder(path, files, **options):
    for name, data in files.items():
        place = path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return splits.load(f"folder:{path}", **options)


def lines(found, path):
    return [
        line.removeprefix(f"folder:{path}: ") for line in notes.describe(found) if line.startswith("folder")
    ]


def test_what_will_happen_to_pixels_is_said(tmp_path):
    exif = Image.Exif()
    exif[formats.ORIENTATION] = 6
    files = {
        "a.jpg": encoded(RGB, "JPEG", exif=exif),
        "b.jpg": encoded(RGB, "JPEG"),
        "c.png": TRANSPARENT["png"],
        "d.tif": OPAQUE["tiff, two pages"],
        "e.png": encoded(Image.fromarray(DEEP // 16), "PNG"),
        "broken.png": b"no",
    }
    found = lines(folder(tmp_path, files, background="#ff8800"), tmp_path)
    assert found[1:] == [
        "of 5 files looked at, 1 are rotated by EXIF: read as they are stored; --config.data.exif=True turns "
        "them",
        "of 5 files looked at, 1 have transparency, over #ff8800 (config.data.background)",
        "of 5 files looked at, 1 have several pages or frames: the first is read",
        "of 5 files looked at, 1 have more than 8 bits or are DICOM: the values of 1 lie in "
        f"{DEEP.min() // 16} to {DEEP.max() // 16}, and 0 to 65535 become black to white: nearly black; "
        "--config.data.intensity=percentiles stretches them, or window",
    ]
    assert "1 are rotated by EXIF: turned" in "\n".join(lines(folder(tmp_path, {}, exif=True), tmp_path))


def test_an_ordinary_folder_is_not_talked_about(tmp_path):
    assert (
        lines(folder(tmp_path, {"a/1.jpg": encoded(RGB, "JPEG"), "b/2.png": OPAQUE["png"]}), tmp_path) == []
    )


def test_percentiles_of_the_training_files(tmp_path):
    images = {f"{'ab'[i % 2]}/{i}.png": noise(9, 9, high=4096, dtype=np.uint16, seed=i) for i in range(10)}
    files = {name: encoded(Image.fromarray(image), "PNG") for name, image in images.items()}
    found = folder(tmp_path, files, intensity="percentiles", percentiles=(2.0, 90.0), holdout=0.0)
    everything = np.concatenate([image.reshape(-1) for image in images.values()])
    expected = np.percentile(everything, [2, 90])
    assert found.train.reading.window == pytest.approx(expected.tolist())
    batch = next(pipeline.eval_batches(found.train, batch=10, size=9, crop=1.0))
    first = np.clip((images["a/0.png"] - expected[0]) / (expected[1] - expected[0]), 0, 1)
    np.testing.assert_allclose(batch["example"][0, ..., 0], first, atol=0.51 / 255)


def test_files_that_are_not_decoded_to_look_at_them_are_counted(tmp_path, monkeypatch):
    from simclr_jax.data import survey

    monkeypatch.setattr(survey, "DEEP", 2)
    kinds = {"dcm": dicom(DEEP), "png": SIXTEEN["png, gray"], "tif": SIXTEEN["tiff"]}
    files = {f"{i}.{kind}": data for i in range(3) for kind, data in kinds.items()}
    line = lines(folder(tmp_path, files | {"x.png": OPAQUE["png"]}), tmp_path)[1]
    assert line.startswith(
        "of 10 files looked at, 9 have more than 8 bits or are DICOM: the values of 2 lie in "
    )


def test_the_set_of_lesions_is_one_whatever_the_file(tmp_path, monkeypatch, capsys):
    """The walk of docs/medical.md: DICOM and PNG of the same values, patients on one side, 1:20."""
    import lesions

    monkeypatch.setattr("sys.argv", ["lesions.py", f"--out={tmp_path}", "--images=210"])
    lesions.main()
    found = splits.load(f"list:{tmp_path / 'list.csv'}", intensity="percentiles", holdout=0.3)
    assert not set(found.train.groups) & set(found.test.groups)
    assert np.bincount(np.concatenate([found.train.ids, found.test.ids])).tolist() == [200, 10]
    image = noise(64, 64, high=4096, dtype=np.uint16)
    lesions.write_dicom(tmp_path / "a.dcm", image, "patient 1")
    Image.fromarray(image).save(tmp_path / "a.png")
    both = [
        formats.read((tmp_path / f"a.{kind}").read_bytes(), found.train.reading) for kind in ("dcm", "png")
    ]
    np.testing.assert_array_equal(*both)
    assert np.ptp(both[0]) == 255


def test_percentiles_where_nothing_was_measured(tmp_path):
    """Arrays have 8 bits; a deep file that none of those looked at was like is not read by a guess."""
    train_split = splits.load("builtin:mnist5k", intensity="percentiles").train
    assert "arrays have 8 bits: config.data.intensity changes nothing" in train_split.notes[-1]
    files = {"a/1.png": OPAQUE["png"], "b/2.png": OPAQUE["png"]}
    found = folder(tmp_path, files, intensity="percentiles")
    assert (
        "changes nothing; a file that has cannot be read without config.data.window" in found.train.notes[-1]
    )
    for kind in ("png, gray", "tiff, float"):
        with pytest.raises(formats.UnreadableError, match=r"set config\.data\.window"):
            formats.read(SIXTEEN[kind], found.train.reading)
        with pytest.raises(tensorflow().errors.OpError):
            by_tensorflow(SIXTEEN[kind], found.train.reading)


def test_a_set_of_holes(tmp_path):
    holes = tiff(np.full((4, 4), np.nan, np.float32), photometric="minisblack")
    for intensity in ("full", "percentiles"):
        found = folder(tmp_path, {"a.tif": holes}, intensity=intensity)
        assert "they hold no finite numbers" in "\n".join(found.train.notes)


STARTED = {"data__intensity": "percentiles", "data__window": (100.0, 3000.0), "data__background": "black"}


@pytest.mark.parametrize(("mine", "expected"), [
    ({}, STARTED),
    ({"data__intensity": "percentiles"}, STARTED),
    ({"data__exif": True}, STARTED | {"data__exif": True}),
    ({"data__background": "red"}, "config.data.background='red'"),
    ({"data__intensity": "window", "data__window": (0.0, 1.0)}, "config.data.intensity='window'"),
])  # fmt: skip
@pytest.mark.parametrize("role", ["start.workdir", "distill.teacher"])
def test_pixels_are_those_of_the_start_or_the_teacher(tmp_path, role, mine, expected):
    (tmp_path / "config.json").write_text(to_json(tiny_config(**STARTED), {}))
    config = tiny_config(task="distill" if role.startswith("distill") else "supervised", **mine)
    set_field(config, role, str(tmp_path))
    if isinstance(expected, str):
        with pytest.raises(SimclrError, match=expected):
            adopt_start(config)
    else:
        adopted = flatten(adopt_start(config))
        assert {name: adopted[name.replace("__", ".")] for name in expected} == expected


def deep_folder(path, n=24):
    images = noise(n, 16, 16, high=4096, dtype=np.uint16)
    images[1::2] //= 3
    for i, image in enumerate(images):
        place = path / "ab"[i % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)


@pytest.mark.parametrize("device", ["none", "all"])
def test_a_run_notes_its_window(tmp_path, device, capsys):
    deep_folder(tmp_path / "set")
    options = {"data__source": f"folder:{tmp_path / 'set'}", "data__intensity": "percentiles",
               "augment__device": device, "train__batch_size": 8, "eval__figures": False}  # fmt: skip
    train.run(tiny_config(**options, train__steps=1), tmp_path / "run")
    stored, _ = load_config(tmp_path / "run")
    low, high = stored.data.window
    assert 0 <= low < 30
    assert 3800 < high < 4096
    assert f"{low:g} to {high:g} become black to white" in capsys.readouterr().out
    Image.fromarray(np.full((16, 16), 60_000, np.uint16)).save(tmp_path / "set" / "a" / "0.png")
    # It goes on with the same window.
    train.run(tiny_config(**options, train__steps=2), tmp_path / "run", force=True)
    assert load_config(tmp_path / "run")[0].data.window == (low, high)


def test_every_road_shows_the_same_pixels(tmp_path):
    files = {"a/1.png": TRANSPARENT["png"], "a/2.webp": TRANSPARENT["webp"], "b/3.tif": TRANSPARENT["tiff"]}
    found = folder(tmp_path, files, background="red", holdout=0.0)
    data = tiny_config(data__channels=3, data__image_size=6).data
    held = memory.hold(found, data).train.fetch(np.arange(3))[0]
    streamed = next(pipeline.eval_batches(found.train, batch=3, size=6, crop=1.0, resize="bilinear"))[
        "example"
    ]
    np.testing.assert_array_equal(held, np.rint(255 * streamed))
    assert (held[0] == held[1]).all()
    assert (held[0] == held[2]).all()


def test_load_takes_rgba(tmp_path):
    config = tiny_config(data__channels=3, data__source="arrays", data__background="#ff0000")
    images = noise(4, 12, 12, 4)
    mine = encoder.Encoder(config, (), 0, {})
    opaque = mine.reader.host(mine.reader.check(images))
    assert np.abs(opaque - over(images, (255, 0, 0))).max() <= 1
    floats = mine.reader.host(mine.reader.check(images.astype(np.float32) / 255))
    np.testing.assert_allclose(floats * 255, opaque, atol=1)


# ---- files that cannot be read ------------------------------------------------------------------


def bombs():
    """Images of 30 pixels."""
    made = encoded(RGB, "JPEG"), encoded(RGB.quantize(8), "GIF"), encoded(RGB, "WEBP")
    return *OPAQUE.values(), *TRANSPARENT.values(), SIXTEEN["tiff"], *made


def test_a_bomb_is_not_decoded():
    for data in bombs():
        with pytest.raises(formats.UnreadableError, match=r"5 × 6 pixels, above config\.data\.max_pixels"):
            formats.read(data, Reading(max_pixels=29))


@pytest.mark.slow
def test_a_bomb_is_not_decoded_by_tensorflow():
    reading = Reading(max_pixels=29)
    for data in bombs():
        with pytest.raises(tensorflow().errors.OpError):
            by_tensorflow(data, reading)
        assert by_tensorflow(data, Reading(max_pixels=30)).shape == (6, 5, 3)


def test_pillow_reads_what_tensorflow_cannot(tmp_path):
    cut = encoded(Image.fromarray(noise(6, 5, high=8)), "PNG")
    files = {f"{i}.jpg": encoded(RGB.resize((16, 16)), "JPEG", quality=90 + i) for i in range(3)}
    # A BMP of 4 bits a pixel, which TensorFlow refuses.
    rows = bytes([0x01, 0x10, 0, 0]) * 2
    header = struct.pack("<IiiHHIIiiII", 40, 3, 2, 1, 4, 0, len(rows), 0, 0, 2, 0)
    bmp = (
        b"BM"
        + struct.pack("<IHHI", 62 + len(rows), 0, 0, 62)
        + header
        + bytes([0, 0, 0, 0, 9, 9, 9, 0])
        + rows
    )
    files |= {"4.bmp": bmp, "5.png": cut}
    source = folder(tmp_path, files).train
    batch = next(pipeline.eval_batches(source, batch=5, size=8, crop=1.0))
    assert batch["mask"].all()
    assert source.ledger.by_pillow == {"4.bmp"}
    assert source.ledger.unreadable == {}


def bad(path, n, bad):
    for i in range(n):
        (path / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        data = encoded(Image.fromarray(noise(16, 16, 3, seed=i)), "JPEG")
        (path / "ab"[i % 2] / f"{i:02}.jpg").write_bytes(data[: len(data) // 3] if i in bad else data)
    return path


@pytest.mark.slow
def test_too_many_bad_files_end_the_run(tmp_path, capsys):
    images = bad(tmp_path / "set", 40, range(0, 40, 4))
    config = tiny_config(data__source=f"folder:{images}", data__holdout=0.0,
                         train__batch_size=8, train__steps=20, eval__figures=False)  # fmt: skip
    with pytest.raises(UnreadableImagesError) as error:
        train.run(config, tmp_path / "run")
    assert "of 40 files cannot be read so far, more than config.data.max_unreadable=0.05 allows" in str(
        error.value
    )
    assert "\n" not in str(error.value)
    rows = [json.loads(line) for line in (tmp_path / "run" / "bad_images.jsonl").read_text().splitlines()]
    assert 3 <= len(rows) <= 10
    assert {row["path"] for row in rows} <= {f"a/{i:02}.jpg" for i in range(0, 40, 4)}
    assert all("truncated" in row["reason"].lower() for row in rows)
    with pytest.raises(UnreadableImagesError):  # what was found before a stop counts
        train.run(config, tmp_path / "run")
    config.data.max_unreadable = 0.25
    summary = train.run(config, tmp_path / "run")  # which may differ
    assert summary["unreadable_files"]["count"] == 10


def test_a_folder_that_is_gone_is_called_that(tmp_path):
    source = folder(bad(tmp_path / "set", 8, ()), {}).train
    (tmp_path / "set").rename(tmp_path / "elsewhere")
    with pytest.raises(
        SimclrError, match="its folder is gone: mount or restore it, and the same command goes on"
    ):
        list(pipeline.eval_batches(source, batch=8, size=16, crop=1.0))


@pytest.mark.parametrize(("field", "value", "says"), [
    ("background", "whitish", "must be an opaque colour"), ("background", "#12345678", "must be an opaque"),
    ("intensity", "auto", "must be one of full, percentiles, window"), ("percentiles", (5.0,), "two numbers"),
    ("percentiles", (50.0, 50.0), "two numbers from 0 to 100"), ("window", (2.0, 1.0), "black and white"),
    ("intensity", "window", "data.window=()"), ("window", (0.0, 1.0), "must be empty, or"),
    ("max_pixels", 0, "above 0"), ("max_unreadable", 1.5, "at most 1"),
])  # fmt: skip
def test_mistakes_in_fields(tmp_path, field, value, says):
    config = tiny_config()
    config.data[field] = value
    with pytest.raises(SimclrError) as error:
        train.run(config, tmp_path / "run")
    assert says in str(error.value)
