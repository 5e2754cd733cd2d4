"""Sources, the order of data, the pipelines."""

import io
import os
import time

import numpy as np
import pytest
from conftest import tiny_arrays
from PIL import Image

from simclr_jax.data import decode, order, pipeline, sources, splits
from simclr_jax.data.host_augment import Crops, Options
from simclr_jax.data.prefetch import Prefetch
from simclr_jax.data.tf import load
from simclr_jax.errors import SimclrError


def photo(h=24, w=20, seed=0):
    """A smooth picture, so that JPEG keeps it."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((w, h), Image.Resampling.BICUBIC)


def save(path, picture=None, **kwargs):
    os.makedirs(path.parent, exist_ok=True)
    (picture or photo()).save(path, **kwargs)


# ---- order --------------------------------------------------------------------------------------


def test_an_epoch_is_a_permutation_that_no_batch_straddles():
    steps = 23 // 5
    seen = [order.step_examples(s, examples=23, batch=5, seed=1)[0] for s in range(2 * steps)]
    for epoch in range(2):
        indices = np.concatenate(seen[epoch * steps : (epoch + 1) * steps])
        assert len(set(indices)) == steps * 5
    assert not np.array_equal(seen[0], seen[steps])


def test_processes_share_out_the_same_global_batch():
    whole = order.step_examples(7, examples=100, batch=12, seed=3)
    parts = [order.step_examples(7, examples=100, batch=12, seed=3, process=p, processes=3) for p in range(3)]
    for k in range(2):
        np.testing.assert_array_equal(whole[k], np.concatenate([part[k] for part in parts]))
    np.testing.assert_array_equal(whole[1], 7 * 12 + np.arange(12))


# ---- decoding -----------------------------------------------------------------------------------

FORMATS = [
    ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("P", "PNG"),
    ("L", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("RGB", "BMP"), ("RGBA", "BMP"), ("P", "BMP"),
    ("L", "BMP"), ("RGB", "GIF"), ("P", "GIF"), ("RGB", "WEBP"), ("RGBA", "WEBP"),
]  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("mode", "kind"), FORMATS)
def test_every_mode_of_every_format_is_decoded_as_pillow_does(mode, kind, channels):
    file = io.BytesIO()
    photo().convert(mode).save(file, kind)
    image = decode.decode(load().constant(file.getvalue()))
    mine = decode.to_channels(image, channels).numpy().astype(int)
    theirs = Image.open(file).convert("RGB")
    expected = np.asarray(theirs if channels == 3 else theirs.convert("L"), int)
    assert mine.shape == (24, 20, channels)
    # Decoders round differently (JPEG's and WebP's colours most), no more.
    assert np.abs(mine.squeeze() - expected).mean() < (4 if mode == "CMYK" else 2)


def animation(kind):
    file = io.BytesIO()
    black, white = (Image.new("RGB", (8, 8), colour) for colour in ("black", "white"))
    black.save(file, kind, save_all=True, append_images=[white])
    return load().constant(file.getvalue())


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind):
    image = decode.decode(animation(kind)).numpy()
    assert image.shape == (8, 8, 3)
    assert image.max() < 10


# ---- folders ------------------------------------------------------------------------------------


def folder(path, **kwargs):
    return splits.load(f"folder:{path}", **kwargs)


def test_classes_with_held_out_images(tmp_path):
    for name in ("cat", "dog"):
        for i in range(10):
            save(tmp_path / name / f"{i}.jpg")
    found = folder(tmp_path, holdout=0.2)
    assert found.train.classes == found.test.classes == ("cat", "dog")
    assert (found.train.size, found.test.size) == (16, 4)
    assert not set(found.train.names) & set(found.test.names)
    assert folder(tmp_path, holdout=0.2).test.names == found.test.names
    assert folder(tmp_path, holdout=0.0).test is None


def test_splits_with_classes(tmp_path):
    for split, name in (("train", "cat"), ("train", "dog"), ("val", "cat"), ("val", "dog")):
        save(tmp_path / split / name / "deep" / "x.png")
    found = folder(tmp_path)
    assert found.train.names == ("train/cat/deep/x.png", "train/dog/deep/x.png")
    assert found.test.names == ("val/cat/deep/x.png", "val/dog/deep/x.png")
    np.testing.assert_array_equal(found.test.fetch(np.arange(2))[1], [0, 1])


def test_a_class_without_test_images_keeps_the_numbers(tmp_path):
    for split, name in (
        ("train", "a"),
        ("train", "b"),
        ("train", "c"),
        ("test", "b"),
        ("test", "c"),
    ):
        save(tmp_path / split / name / "x.png")
    found = folder(tmp_path)
    assert found.test.classes == ("a", "b", "c")
    np.testing.assert_array_equal(found.test.fetch(np.arange(2))[1], [1, 2])


@pytest.mark.parametrize("test", ["test/b/x.png", "val/b/deep/x.png"])
def test_a_test_split_of_one_class(tmp_path, test):
    for path in ("train/a/x.png", "train/b/x.png", test):
        save(tmp_path / path)
    found = folder(tmp_path)
    assert found.test.classes == ("a", "b")
    np.testing.assert_array_equal(found.test.fetch(np.arange(1))[1], [1])


def test_a_test_split_without_classes(tmp_path):
    for path in ("train/a/x.png", "train/b/x.png", "test/x.png"):
        save(tmp_path / path)
    found = folder(tmp_path)
    assert found.train.classes == ("a", "b")
    assert found.test.classes == ()


def test_train_classes_without_a_test_folder(tmp_path):
    for name in "ab":
        for i in range(5):
            save(tmp_path / "train" / name / f"{i}.png")
    found = folder(tmp_path, holdout=0.2)
    assert (found.train.size, found.test.size) == (8, 2)


def test_a_folder_of_unlabelled_images_beside_the_classes(tmp_path):
    for name in ("a", "b", "unlabelled"):
        for i in range(4):
            save(tmp_path / "train" / name / f"{i}.png")
    train = folder(tmp_path, holdout=0.0).train
    assert train.classes == ("a", "b")
    _, labels = train.fetch(np.arange(train.size))
    assert sorted(labels.tolist()) == [-1] * 4 + [0] * 4 + [1] * 4


def test_a_class_that_train_lacks(tmp_path):
    for split, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "z")):
        save(tmp_path / split / name / "x.png")
    found = folder(tmp_path)
    assert found.test.classes == ("a", "b")
    assert found.test.labels().tolist() == [0, -1]


@pytest.mark.parametrize("below", ["", "images"])
def test_file_names_never_become_classes(tmp_path, below):
    for i in range(3):
        save(tmp_path / below / f"cat_{i}.jpg")
    (tmp_path / "notes.txt").write_text("not an image")
    found = folder(tmp_path)
    assert found.train.classes == ()
    assert found.train.size == 3
    assert found.test is None
    np.testing.assert_array_equal(found.train.fetch(np.arange(3))[1], -1)


def test_no_folder_and_no_image(tmp_path):
    with pytest.raises(SimclrError, match="no such folder"):
        folder(tmp_path / "nowhere")
    with pytest.raises(SimclrError, match="no image"):
        folder(tmp_path)


def test_folder_relative_to_data_dir(tmp_path):
    save(tmp_path / "photos" / "1.jpg")
    found = splits.load("folder:photos", data_dir=str(tmp_path))
    assert found.train.fingerprint == folder(tmp_path / "photos").train.fingerprint


def bad_folder(tmp_path, n=12):
    for i in range(n):
        save(tmp_path / f"{i:02}.jpg", photo(seed=i))
    (tmp_path / "03.jpg").write_bytes(b"")
    (tmp_path / "04.jpg").write_text("no image at all")
    whole = (tmp_path / "09.jpg").read_bytes()
    (tmp_path / "09.jpg").write_bytes(whole[: len(whole) // 2])
    return folder(tmp_path).train


def test_unreadable_files_give_way_to_the_next_and_are_named_once(tmp_path):
    source = bad_folder(tmp_path)
    for _ in range(2):
        batch = next(pipeline.eval_batches(source, batch=12, size=16, crop=1.0))
    images = batch["example"]
    for bad, good in ((3, 5), (4, 5), (9, 10)):
        np.testing.assert_array_equal(images[bad], images[good])
    assert set(source.ledger.unreadable) == {"03.jpg", "04.jpg", "09.jpg"}
    assert len({x.tobytes() for x in images}) == 9


def test_an_error_that_quotes_bytes_of_a_file(tmp_path):
    """TensorFlow's text of it is no UTF-8."""
    for i in range(3):
        save(tmp_path / f"{i}.png", photo(seed=i))
    (tmp_path / "1.png").write_bytes(b"\x89PNG no image")
    source = folder(tmp_path).train
    assert next(pipeline.eval_batches(source, batch=3, size=16, crop=1.0))["mask"].all()
    assert set(source.ledger.unreadable) == {"1.png"}


def test_positions_do_not_shift_past_an_unreadable_file(tmp_path):
    source = bad_folder(tmp_path / "bad")
    (tmp_path / "good").mkdir()
    for i in range(12):
        save(tmp_path / "good" / f"{i:02}.jpg", photo(seed=i))
    good = folder(tmp_path / "good").train
    for mine, clean in zip(train(source, batch=4), train(good, batch=4), strict=True):
        index = order.step_examples(int(mine["position"][0]) // 4, examples=12, batch=4, seed=0)[0]
        same = ~np.isin(index, [3, 4, 9])
        np.testing.assert_array_equal(mine["views"][same], clean["views"][same])


def test_nothing_readable(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_text("no")
    with pytest.raises(SimclrError, match=r"none of its 3 files can be read"):
        list(pipeline.eval_batches(folder(tmp_path).train, batch=2, size=16, crop=1.0))


# ---- arrays and npz -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [("train_images", "train_labels", "test_images", "test_labels"),
     ("x_train", "y_train", "x_test", "y_test"), ("images", "labels")],
)  # fmt: skip
def test_npz(tmp_path, keys):
    x, y = tiny_arrays(20)
    np.savez(tmp_path / "a.npz", **{k: y[:, None] if "label" in k or k[0] == "y" else x for k in keys})
    found = splits.load(f"npz:{tmp_path / 'a.npz'}")
    sizes = (18, 2) if len(keys) == 2 else (20, 20)  # without a test split, a tenth is held out
    assert (found.train.size, found.test.size) == sizes
    assert found.train.classes == ("0", "1", "2", "3")


def test_npz_without_labels_trains_on_all(tmp_path):
    np.savez(tmp_path / "a.npz", images=tiny_arrays(20)[0])
    found = splits.load(f"npz:{tmp_path / 'a.npz'}")
    assert (found.train.size, found.test) == (20, None)


def test_npz_that_is_none(tmp_path):
    (tmp_path / "a.npz").write_text("no")
    for path, text in (("a.npz", "not an .npz file"), ("b.npz", "no such file")):
        with pytest.raises(SimclrError, match=text):
            splits.load(f"npz:{tmp_path / path}")
    np.savez(tmp_path / "c.npz", pictures=np.zeros(3))
    with pytest.raises(SimclrError, match="holds pictures; name the images"):
        splits.load(f"npz:{tmp_path / 'c.npz'}")


@pytest.mark.parametrize(
    ("images", "labels"),
    [(np.zeros((3, 4)), None), (np.zeros((3, 4, 4), bool), None), (np.zeros((0, 4, 4), np.uint8), None),
     (np.zeros((3, 4, 4), np.uint8), [0, 1]), (np.zeros((3, 4, 4), np.uint8), [0.5, 1.0, 2.0]),
     (np.zeros((3, 4, 4), np.uint8), [0, 1, -2])],
)  # fmt: skip
def test_arrays_of_the_wrong_kind(images, labels):
    with pytest.raises(SimclrError, match="must be"):
        sources.from_arrays(images, labels)


@pytest.mark.parametrize(("have", "want"), [(1, 3), (3, 1), (4, 4)])
def test_channels_are_converted(have, want):
    source = sources.from_arrays(*tiny_arrays(8, channels=have))
    batch = next(pipeline.eval_batches(source, batch=8, size=12, crop=1.0, channels=want))
    images = source.fetch(np.arange(8))[0] / 255
    luma = images @ [0.299, 0.587, 0.114] if have == 3 else None
    expected = np.repeat(images, 3, -1) if want == 3 else luma[..., None] if want == 1 else images
    np.testing.assert_allclose(batch["example"], expected, atol=0.6 / 255)


def test_subset_of_arrays():
    images, labels = tiny_arrays(20)
    whole = sources.from_arrays(images, labels)
    some = whole.subset(np.array([7, 3, 11]))
    pixels, ids = some.fetch(np.array([2, 0]))
    np.testing.assert_array_equal(pixels, images[[11, 7]])
    np.testing.assert_array_equal(ids, labels[[11, 7]])
    assert some.size == 3
    assert some.classes == whole.classes
    assert some.fingerprint not in (whole.fingerprint, whole.subset(np.array([3, 7, 11])).fingerprint)
    np.testing.assert_array_equal(whole.labels(), labels)


def test_subset_of_files_replaces_within_itself(tmp_path):
    for i in range(6):
        save(tmp_path / f"{'ab'[i % 2]}" / f"{i}.png", photo(seed=i))
    (tmp_path / "a" / "2.png").write_bytes(b"broken")
    whole = splits.load(f"folder:{tmp_path}", holdout=0.0).train
    assert [n[-5] for n in whole.names] == list("024135")
    some = whole.subset(np.array([1, 4]))  # the broken one, and a file of b
    batch = next(pipeline.eval_batches(some, batch=2, size=16, crop=1.0))
    assert batch["label"].tolist() == [1, 1]
    assert set(some.ledger.unreadable) == {some.names[0]}


def test_channels_that_cannot_be_converted():
    source = sources.from_arrays(*tiny_arrays(8, channels=4))
    with pytest.raises(SimclrError, match=r"config\.data\.channels=3: the images have 4"):
        next(pipeline.eval_batches(source, batch=8, size=12, crop=1.0))


def test_labels_that_are_all_unknown_are_none():
    assert sources.from_arrays(tiny_arrays(6)[0], np.full(6, -1)).classes == ()


def test_shipped_digits():
    found = splits.load("builtin:mnist5k")
    assert (found.train.size, found.test.size) == (4000, 1000)
    for source, each in zip(found, (400, 100), strict=True):
        images, labels = source.fetch(np.arange(source.size))
        assert images.shape[1:] == (28, 28, 1)
        np.testing.assert_array_equal(np.bincount(labels), [each] * 10)


# ---- training batches ---------------------------------------------------------------------------


def train(source, start=0, stop=6, batch=8, seed=0, channels=3, options=None, **kwargs):
    kinds = kwargs.pop("kinds", [Crops("views", 12, 2, 0, options or Options())])
    which = {"start": start, "stop": stop, "batch": batch, "seed": seed, "channels": channels}
    return list(pipeline.train_batches(source, **which, kinds=kinds, **kwargs))


def arrays(n=20, channels=3):
    return sources.from_arrays(*tiny_arrays(n, channels=channels))


def test_batch_contract():
    batches = train(arrays(), stop=2)
    assert len(batches) == 2
    for batch in batches:
        assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
            "views": ((8, 2, 12, 12, 3), "float32"),
            "position": ((8,), "uint32"),
            "label": ((8,), "int32"),
            "mask": ((8,), "bool"),
        }
        assert batch["views"].min() >= 0
        assert batch["views"].max() <= 1


def test_any_start_gives_the_rest_of_the_run_to_the_bit():
    whole = train(arrays())
    for start in (1, 2, 5):
        for a, b in zip(whole[start:], train(arrays(), start=start), strict=True):
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])


def test_two_processes_read_the_rows_of_one():
    whole = train(arrays())
    parts = [train(arrays(), process=p, processes=2) for p in range(2)]
    for batch, *halves in zip(whole, *parts, strict=True):
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([h[key] for h in halves]))


def test_views_differ_between_epochs_views_and_seeds():
    first, *_, again = train(arrays(8), stop=2)  # one batch an epoch
    order_a, order_b = np.argsort(first["label"]), np.argsort(again["label"])
    assert np.abs(first["views"][order_a] - again["views"][order_b]).max() > 0.1
    assert np.abs(first["views"][:, 0] - first["views"][:, 1]).max() > 0.1
    other = train(arrays(8), stop=1, seed=1)[0]
    assert np.abs(first["views"] - other["views"]).max() > 0.1


# ---- evaluation batches -------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("n", [8, 9, 17, 20])
def test_evaluation_counts_every_example_once(n, processes):
    source = arrays(n)
    parts = [
        list(pipeline.eval_batches(source, batch=8, size=12, crop=1.0, process=p, processes=processes))
        for p in range(processes)
    ]
    assert len({len(part) for part in parts}) == 1
    images, labels = [], []
    for step in zip(*parts, strict=True):
        batch = {k: np.concatenate([part[k] for part in step]) for k in step[0]}
        assert batch["example"].shape == (8, 12, 12, 3)
        images.append(batch["example"][batch["mask"]])
        labels.append(batch["label"][batch["mask"]])
    expected, expected_labels = source.fetch(np.arange(n))
    np.testing.assert_allclose(np.concatenate(images), expected / 255, atol=1e-6)
    np.testing.assert_array_equal(np.concatenate(labels), expected_labels)


# ---- TFDS ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Local TFDS data sets: `small` (one shape) and `large` (many), in both file formats."""
    load()
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("tfds")

    def prepare(name, shape, file_format):
        def generate(self, n, seed):
            for i in range(n):
                picture = np.asarray(photo(24, 20 if shape[1] else 20 + i % 5, seed=seed + i))
                yield i, {"image": picture, "label": i % 3}

        def info(self):
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(
                        names=["x", "y", "z"])}
                )
            )  # fmt: skip

        def split_generators(self, _):
            return {"train": self._generate_examples(20, 0), "test": self._generate_examples(7, 50)}

        with tfds.core.registered.skip_registration():
            cls = type(name, (tfds.core.GeneratorBasedBuilder,), {
                "VERSION": tfds.core.Version("1.0.0"), "_info": info, "__module__": __name__,
                "_split_generators": split_generators, "_generate_examples": generate,
                "pkg_dir_path": root,
            })  # fmt: skip
        where = root / file_format
        cls(data_dir=where, file_format=file_format).download_and_prepare()

    for file_format in ("array_record", "tfrecord"):
        prepare("Small", (24, 20, 3), file_format)
        prepare("Large", (None, None, 3), file_format)
    return root


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_tfds_that_fits_is_held_in_memory(tfds_dir, file_format):
    found = splits.load("tfds:small", data_dir=str(tfds_dir / file_format))
    assert found.train.kind == "array"
    assert found.train.classes == ("x", "y", "z")
    assert (found.train.size, found.test.size) == (20, 7)
    images, labels = found.train.fetch(np.arange(20))
    assert images.shape == (20, 24, 20, 3)
    part = splits.load("tfds:small", data_dir=str(tfds_dir / file_format), train_split="train[:2]")
    np.testing.assert_array_equal(part.train.labels(), found.train.labels()[:2])
    without = splits.load("tfds:small", data_dir=str(tfds_dir / file_format), test_split="")
    assert without.test is None
    np.testing.assert_array_equal(np.bincount(labels), [7, 7, 6])


def test_array_record_has_random_access(tfds_dir):
    found = splits.load("tfds:large", data_dir=str(tfds_dir / "array_record"))
    assert found.train.kind == "record"
    whole = train(found.train, stop=4)
    for a, b in zip(whole[3:], train(found.train, start=3, stop=4), strict=True):
        np.testing.assert_array_equal(a["views"], b["views"])
    batches = list(pipeline.eval_batches(found.test, batch=4, size=16, crop=1.0))
    assert [int(b["mask"].sum()) for b in batches] == [4, 3]


@pytest.mark.slow
def test_tfrecord_is_a_stream(tfds_dir):
    found = splits.load("tfds:large", data_dir=str(tfds_dir / "tfrecord"))
    assert isinstance(found.train, sources.Stream)
    whole = train(found.train, stop=5)  # 20 images, batches of 8: two steps an epoch
    assert [int(b["position"][0]) // 8 for b in whole] == [0, 1, 2, 3, 4]
    for start in (1, 3):
        for a, b in zip(whole[start:], train(found.train, start=start, stop=5), strict=True):
            np.testing.assert_array_equal(a["views"], b["views"])
    labels = [np.concatenate([whole[e]["label"], whole[e + 1]["label"]]) for e in (0, 2)]
    assert not np.array_equal(*labels)  # a new order every epoch
    for processes in (1, 2):
        parts = [
            list(
                pipeline.eval_batches(found.test, batch=4, size=16, crop=1.0, process=p, processes=processes)
            )
            for p in range(processes)
        ]
        assert len({len(part) for part in parts}) == 1
        assert sum(int(b["mask"].sum()) for part in parts for b in part) == 7


def test_tfds_that_is_not_there(tmp_path):
    with pytest.raises(SimclrError, match=r"config\.data\.download=True"):
        splits.load("tfds:cifar10", data_dir=str(tmp_path))
    with pytest.raises(SimclrError, match="tfds:no_such_thing"):
        splits.load("tfds:no_such_thing", data_dir=str(tmp_path))


def test_tfds_split_that_is_not_there(tfds_dir):
    with pytest.raises(SimclrError, match="no such split; there are test, train"):
        splits.load("tfds:small", data_dir=str(tfds_dir / "tfrecord"), test_split="validation")


# ---- prefetch -----------------------------------------------------------------------------------


def test_prefetch_gives_all_then_says_that_it_is_over():
    batches = Prefetch(10 * b for b in range(5))
    assert [batches.next() for _ in range(5)] == [0, 10, 20, 30, 40]
    for _ in range(2):
        with pytest.raises(SimclrError, match="input ended"):
            batches.next()


def test_prefetch_passes_errors_on():
    def broken():
        yield 1
        raise KeyError("no such image")

    batches = Prefetch(broken())
    assert batches.next() == 1
    with pytest.raises(KeyError, match="no such image"):
        batches.next()
    batches.close()


def test_prefetch_counts_only_the_time_the_device_is_idle():
    def slow():
        for i in range(4):
            time.sleep(0.1)
            yield i

    hidden = Prefetch(slow())
    for _ in range(4):
        hidden.next(lambda: time.sleep(0.25))  # the device works longer than the input takes
    bare = Prefetch(slow())
    for _ in range(4):
        bare.next()
    assert bare.wait_seconds > 0.3
    assert hidden.wait_seconds < 0.5 * bare.wait_seconds
