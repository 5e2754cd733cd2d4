"""The evaluation command: protocols, what is kept, the report, and the same predictions anywhere."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, tiny_arrays, tiny_config, tiny_splits, untrained_run
from PIL import Image

from simclr_jax import encoder, sharding, train
from simclr_jax.config import default
from simclr_jax.data import sources
from simclr_jax.data.splits import Splits
from simclr_jax.data.tf import load as load_tensorflow
from simclr_jax.errors import SimclrError
from simclr_jax.evaluate import __main__ as command
from simclr_jax.evaluate import compare, frozen, page, published, report, run
from simclr_jax.evaluate.subject import Subject
from simclr_jax.feeds.images import Images
from simclr_jax.measures import classified, knn, linear
from simclr_jax.protocols import scores
from simclr_jax.results import WHO, Cell, Row

ROOT = Path(__file__).parent.parent
FAST = ("features", "knn", "lbfgs", "linear", "classifier")


def config_of(images, **fields):
    common = {
        "data__source": f"npz:{images}", "augment__device": "all", "augment__jitter": 0.0,
        "eval__linear__epochs": 2.0, "eval__linear__rates": (0.1, 1.0), "eval__linear__decays": (0.0,),
        "eval__finetune__shares": (0.1, 1.0), "eval__finetune__epochs": (2.0, 1.0),
        "eval__robustness__images": 24, "mesh__devices": 1,
    }  # fmt: skip
    return tiny_config(**(common | fields))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "tiny.npz"
    (x, y), (test_x, test_y) = tiny_arrays(n=120), tiny_arrays(n=41, seed=7)
    np.savez(path, x_train=x, y_train=y, x_test=test_x, y_test=test_y)
    return path


@pytest.fixture(scope="module")
def fresh(images, tmp_path_factory):
    """The workdir of a run that nobody has evaluated; to be copied."""
    return untrained_run(tmp_path_factory.mktemp("runs") / "fresh", config_of(images))


@pytest.fixture
def workdir(fresh, tmp_path):
    return shutil.copytree(fresh, tmp_path / "run")


def predictions(workdir):
    """Every prediction of every classifier."""
    found = {}
    for path in sorted((workdir / "eval" / "predictions").glob("*.npz")):
        with np.load(path) as arrays:
            found |= {f"{path.stem}/{name}": arrays[name] for name in arrays}
    return found


def test_the_report_and_that_what_was_found_is_kept(workdir, monkeypatch, capsys):
    made = run.evaluate(workdir)
    assert set(made["protocols"]) == set(run.DEFAULT)
    assert [row["id"] for row in made["rows"]] == [
        "knn", "linear_all", "knn_200", "knn_20", "knn_chosen", "lbfgs", "sgd", "sgd_chosen", "classifier",
    ]  # fmt: skip
    for row in made["rows"]:
        for one in row["cells"].values():
            assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1
    assert json.loads((workdir / "eval" / "report.json").read_text()) == json.loads(json.dumps(made))
    page = (workdir / "eval" / "report.html").read_text()
    drawn = [name for result in made["protocols"].values() for name, _ in result.get("figures", ())]
    assert page.count("data:image/png;base64,") == len(drawn) >= 18
    assert not re.search(r"(src|href)=\W?http|url\(|@import", page)  # opens offline
    assert 'name="viewport"' in page
    assert made["verdict"] in page
    assert {"tensors.tsv", "metadata.tsv", "sprite.png", "projector_config.pbtxt"} <= {
        path.name for path in (workdir / "eval" / "projector").iterdir()
    }
    text = "\n".join(report.table(made))
    assert "kNN, k = 200, T = 0.1" in text
    assert "untrained encoder" in text

    def again(subject):
        raise AssertionError("runs again")

    for name in run.DEFAULT:
        monkeypatch.setitem(run.PROTOCOLS, name, run.PROTOCOLS[name]._replace(run=again))
    capsys.readouterr()
    second = run.evaluate(workdir)
    assert second["rows"] == made["rows"]
    assert capsys.readouterr().out.count("kept") == len(run.DEFAULT)
    with pytest.raises(AssertionError, match="runs again"):
        run.evaluate(workdir, protocols=["knn"], again=True)
    other = command.override(str(workdir), ["--config.eval.endpoint=block_group2"])
    with pytest.raises(AssertionError, match="runs again"):  # another question
        run.evaluate(workdir, protocols=["knn"], config=other)


def test_without_scores_the_protocols_words_are_printed():
    made = {"rows": [], "left_out": "", "protocols": {"a": {"notes": ["PSNR 7", "SSIM 1"]}, "b": {}}}
    assert report.table(made) == []
    assert report.notes(made) == ["PSNR 7", "SSIM 1", ""]
    assert report.notes({"protocols": {"b": {}}}) == []


@pytest.mark.slow
def test_a_report_has_the_scores_that_ended_the_run(tmp_path, monkeypatch):
    """The same rows to the last digit; the search that chose k and T is made once."""
    splits = tiny_splits(n=130)
    summary = train.run(tiny_config(train__steps=3, eval__final=True), tmp_path, splits=splits)
    searched = []

    def grid(*args):
        searched.append((*args, "cosine")[5])
        return original(*args)

    original = scores.neighbour_grid
    monkeypatch.setattr(scores, "neighbour_grid", grid)
    monkeypatch.setattr(frozen, "neighbour_grid", grid)
    made = run.evaluate(tmp_path, protocols=["scores", "knn"], splits=splits)
    assert [row["id"] for row in summary["rows"]] == ["knn", "linear_100", "linear_all"]
    assert made["rows"][:3] == summary["rows"]
    assert {who for row in summary["rows"] for who in row["cells"]} == set(WHO)
    for row in summary["rows"]:
        for who, one in row["cells"].items():
            assert summary["scores"][row["id"]][who] == one["value"]
            assert summary["standard_errors"][row["id"]][who] == one["error"]
    assert searched == 3 * ["cosine"] + ["euclidean", "cosine", "euclidean"]  # contenders; h, z and z


def test_examples_that_are_no_pictures(workdir, monkeypatch, capsys):
    """What shows pictures says so and is left out; all else is done."""
    monkeypatch.setattr(Images, "pictures", False)
    made = run.evaluate(
        workdir,
        protocols=["lbfgs", "robustness", "invariance", "health", "neighbours", "saliency", "maps"],
    )
    skipped = {name for name, result in made["protocols"].items() if "skipped" in result}
    assert skipped == {"robustness", "saliency"}
    assert capsys.readouterr().out.count("tiny.npz/x_train holds no pictures") == 2
    assert set(made["protocols"]["invariance"]["similarity"]) == {"all of the run's", "another image"}
    drawn = {path.name for path in (workdir / "eval" / "figures").iterdir()}
    assert not drawn & {"retrieval.png", "duplicates.png", "outliers.png", "similarity_maps.png"}
    assert {"invariance.png", "spectrum.png", "tsne.png"} <= drawn
    assert "outliers" in made["protocols"]["neighbours"]
    config = (workdir / "eval" / "projector" / "projector_config.pbtxt").read_text()
    assert "sprite" not in config
    assert config.count("{") == config.count("}") == 1


def test_the_help_names_every_protocol():
    lines = [line.split() for line in command.PROTOCOLS.splitlines() if line.startswith("  ")]
    assert [words[0] for words in lines] == list(run.PROTOCOLS)
    assert all(protocol.after in ("", *run.PROTOCOLS) for protocol in run.PROTOCOLS.values())


def test_a_stopped_evaluation_goes_on(workdir, monkeypatch):
    """The protocols before the stop are not run again, features are not extracted again."""
    calls = []

    def counted(name, fails=False):
        protocol = run.PROTOCOLS[name]

        def wrapped(subject):
            calls.append(name)
            if fails:
                raise KeyboardInterrupt
            return protocol.run(subject)

        monkeypatch.setitem(run.PROTOCOLS, name, protocol._replace(run=wrapped))
        return protocol

    counted("knn")
    original = counted("health", fails=True)
    names = ["knn", "health"]
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(workdir, protocols=names)
    monkeypatch.setitem(run.PROTOCOLS, "health", original)
    monkeypatch.setattr(Subject, "_extract", lambda *_: pytest.fail("extracts again"))
    made = run.evaluate(workdir, protocols=names)
    assert calls == ["knn", "health"]
    assert set(made["protocols"]) == set(names)


@pytest.mark.slow
def test_one_and_eight_devices_and_two_processes_predict_the_same(fresh, tmp_path):
    folders = {name: shutil.copytree(fresh, tmp_path / name) for name in ("one", "eight", "two")}
    words = [
        sys.executable,
        str(ROOT / "tools" / "launch" / "local.py"),
        "--processes=2",
        "--devices=2",
        "--",
    ]
    words += [sys.executable, "-m", "simclr_jax.evaluate", f"--workdir={folders['two']}"]
    words += [f"--protocols={','.join(FAST)}", "--config.mesh.devices=0"]
    environment = os.environ | {"XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT)}
    two = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for name, devices in (("one", 1), ("eight", 8)):
        config = command.override(str(folders[name]), [f"--config.mesh.devices={devices}"])
        run.evaluate(folders[name], protocols=FAST, config=config)
    output = two.communicate(timeout=300)[0]
    assert two.returncode == 0, output
    assert output.count("report.html") == 1  # process 0 alone speaks
    one = predictions(folders["one"])
    assert len(one) == 11
    for other in ("eight", "two"):
        found = predictions(folders[other])
        for name, classes in one.items():
            np.testing.assert_array_equal(found[name], classes, err_msg=f"{other}: {name}")


def test_features_do_not_depend_on_the_batch_around_them(workdir):
    """BatchNorm goes by its moving statistics, and the filling of the last batch leaves no trace."""
    found = []
    for size in (8, 32):
        config = command.override(str(workdir), [f"--config.eval.batch_size={size}"])
        shutil.rmtree(workdir / "eval", ignore_errors=True)
        run.evaluate(workdir, protocols=["features"], config=config)
        (path,) = (workdir / "eval" / "features").glob("simclr-test-*.npz")
        with np.load(path) as arrays:
            found.append(dict(arrays))
    (train,) = (workdir / "eval" / "features").glob("simclr-train-*.npz")
    with np.load(train) as kept:
        assert set(kept) == {"encoder", "projection", "labels"}
    assert {name: len(x) for name, x in found[0].items()} == dict.fromkeys(
        ("encoder", "projection", "logits", "labels"), 41
    )
    for name, values in found[0].items():
        np.testing.assert_allclose(values, found[1][name], rtol=1e-5, atol=1e-5)


def arrays(n=40, classes=4, labels=None, seed=0):
    x, y = tiny_arrays(n=n, classes=classes, seed=seed)
    return sources.from_arrays(
        x, y if labels is None else np.full(n, labels) if np.ndim(labels) == 0 else labels
    )


def unlabelled(n=40):
    return sources.from_arrays(tiny_arrays(n=n)[0])


DEGENERATE = {
    "no labels": (lambda: Splits(unlabelled(), None), "has no labels"),
    "no test split": (lambda: Splits(arrays(), None), "no test split"),
    "no labels in test": (lambda: Splits(arrays(), unlabelled(9)), "has no labels"),
    "one class only": (lambda: Splits(arrays(labels=0), arrays(9, labels=0)), "one class only"),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_nothing_to_score(case, workdir, capsys):
    make, line = DEGENERATE[case]
    made = run.evaluate(workdir, splits=make(), protocols=["knn", "lbfgs", "health", "neighbours"])
    assert not made["rows"]
    assert line in made["verdict"]
    assert set(made["protocols"]) == {"health", "neighbours"}
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("train", "test", "count", "more"),
    [
        ({"n": 11}, {"n": 6}, 6, ("linear", "neighbours")),  # fewer than k, than neighbours, than a batch
        ({"n": 40}, {"n": 1}, 1, ("robustness", "saliency")),
        ({"n": 40}, {"labels": np.arange(40) % 2}, 40, ()),  # two classes missing from test
        (
            {"labels": np.r_[np.full(20, -1), np.arange(20) % 4]},
            {"labels": np.r_[-1, np.arange(39) % 4]},
            39,
            ("classifier",),
        ),
    ],
)
def test_little_to_score(train, test, count, more, workdir):
    splits = Splits(arrays(**train), arrays(**test, seed=3))
    made = run.evaluate(workdir, splits=splits, protocols=["knn", "lbfgs", *more])
    assert len(made["rows"]) == 4 + 2 * ("linear" in more) + ("classifier" in more)
    for title, measured in made["protocols"]["lbfgs"]["metrics"].items():
        assert measured["images"] == count, title
        assert 0 <= measured["top1"] <= 1


@pytest.mark.slow
def test_fine_tuning_takes_balanced_labels_and_stays_with_them(workdir):
    made = run.evaluate(workdir, protocols=["finetune"])
    shares = made["protocols"]["finetune"]["shares"]
    assert shares["0.1"]["images"] == 12
    assert shares["0.1"]["of_each_class"] == [3, 3]
    assert shares["1"]["images"] == 120
    assert set(made["rows"][0]["cells"]) == {"simclr", "untrained"}
    assert made["rows"][0]["id"] == "finetune_0.1"


def test_transfer_to_other_images(workdir, images):
    made = run.evaluate(workdir, protocols=[], transfer=[f"npz:{images}"])
    own = run.evaluate(workdir, protocols=["lbfgs"])
    assert made["rows"][0]["cells"] == next(row for row in own["rows"] if row["id"] == "lbfgs")["cells"]
    with pytest.raises(SimclrError, match=r"--transfer=npz:.*no such file"):
        run.evaluate(workdir, protocols=[], transfer=["npz:/nowhere.npz"])


@pytest.fixture(scope="module")
def several_labels(tmp_path_factory):
    """Images that show their classes as bright quarters, as an .npz file and as a TFDS set."""
    root, rng = tmp_path_factory.mktemp("several"), np.random.default_rng(0)
    targets = rng.integers(0, 2, (60, 4))
    x = rng.integers(0, 100, (60, 12, 12, 1))
    for i, (top, left) in enumerate(((0, 0), (0, 6), (6, 0), (6, 6))):
        x[:, top : top + 6, left : left + 6, 0] += 150 * targets[:, i, None, None]
    x = x.astype(np.uint8)
    np.savez(root / "several.npz", x_train=x[:40], y_train=targets[:40], x_test=x[40:], y_test=targets[40:])
    load_tensorflow()
    import tensorflow_datasets as tfds

    def generate(self, rows):
        for i in rows:
            yield int(i), {"image": x[i], "labels": np.flatnonzero(targets[i])}

    def info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 1)),
                    "labels": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=4)),
                }
            )
        )

    def split_generators(self, _):
        return {"train": self._generate_examples(range(40)), "test": self._generate_examples(range(40, 60))}

    fields = {
        "VERSION": tfds.core.Version("1.0.0"), "_info": info, "__module__": __name__, "pkg_dir_path": root,
        "_split_generators": split_generators, "_generate_examples": generate,
    }  # fmt: skip
    with tfds.core.registered.skip_registration():
        cls = type("Several", (tfds.core.GeneratorBasedBuilder,), fields)
        cls(data_dir=str(root), file_format="array_record").download_and_prepare()
    return root


@pytest.mark.slow
def test_transfer_to_images_with_several_labels(workdir, several_labels):
    """An .npz file and a TFDS set, which holds the same images in another order."""
    config = command.override(str(workdir), [f"--config.data.data_dir={several_labels}"])
    config.data.source = f"npz:{config.data.source.removeprefix('npz:')}"
    made = run.evaluate(workdir, protocols=[], config=config, transfer=["npz:several.npz", "tfds:several"])
    first, second = made["rows"]
    assert first["note"] == second["note"] == "11-point mAP"
    for row in (first, second):
        assert 0.9 < row["cells"]["raw_pixels"]["value"] <= 1  # a quarter's brightness is easy to read
        assert 0 < row["cells"]["simclr"]["value"] <= 1


def test_duplicates_and_outliers_have_the_names_of_their_files(fresh, tmp_path):
    """In a folder sorted by class, of which only a sample is looked at."""
    x, y = tiny_arrays(n=24)
    x[3] = 255 * (np.indices((12, 12)).sum(0) % 2)[..., None]  # like nothing else
    root = tmp_path / "images"
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        for split in ("train", "test"):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(folder / f"{i:02d}.png")
    shutil.copy(root / "train" / "class1" / "05.png", root / "train" / "class1" / "twin.png")
    workdir = shutil.copytree(fresh, tmp_path / "run")
    config = command.override(str(workdir), [f"--config.data.source=folder:{root}"])
    found = run.evaluate(workdir, protocols=["neighbours"], config=config)["protocols"]["neighbours"]
    assert found["near_duplicates"][0][:2] == ["train/class1/05.png", "train/class1/twin.png"]
    assert found["near_duplicates"][0][2] == pytest.approx(1, abs=1e-5)
    assert found["outliers"][0][0] == "train/class3/03.png"


@pytest.mark.slow
def test_another_set_is_added_and_a_changed_one_transferred_again(workdir, tmp_path):
    x, y = tiny_arrays(n=60)
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    first, second = (f"npz:{tmp_path / name}.npz" for name in "ab")

    def cells(*sources):
        made = run.evaluate(workdir, protocols=[], transfer=sources)
        return {row["id"].removeprefix("transfer_"): row["cells"]["raw_pixels"] for row in made["rows"]}

    before = cells(first)
    assert set(cells(second)) == {first, second}
    np.savez(tmp_path / "a.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=(y[40:] + 1) % 4)
    after = cells(first)
    assert set(after) == {first, second}
    assert after[first]["value"] < before[first]["value"]
    assert after[second] == before[first]


def test_a_set_that_is_none_is_told_first_and_one_that_fails_loses_nothing(workdir, monkeypatch, capsys):
    def fails(subject):
        raise SimclrError("the protocol failed")

    monkeypatch.setitem(run.PROTOCOLS, "knn", run.PROTOCOLS["knn"]._replace(run=fails))
    with pytest.raises(SimclrError, match="--transfer=/images: must be tfds:NAME"):
        run.evaluate(workdir, protocols=["knn"], transfer=["/images"])
    assert "knn" not in capsys.readouterr().out
    with pytest.raises(SimclrError, match="the protocol failed"):
        run.evaluate(workdir, protocols=["knn", "classifier"])
    made = json.loads((workdir / "eval" / "report.json").read_text())
    assert set(made["protocols"]) == {"classifier"}


@pytest.mark.slow
def test_other_images_and_endpoints_have_folders_of_their_own(workdir, tmp_path):
    x, y = tiny_arrays(n=30, seed=4)
    np.savez(tmp_path / "other.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    own = run.evaluate(workdir, protocols=["knn", "classifier"])
    for option in (
        f"--config.data.source=npz:{tmp_path / 'other.npz'}",
        "--config.eval.endpoint=block_group2",
    ):
        other = run.evaluate(workdir, protocols=["knn"], config=command.override(str(workdir), [option]))
        assert Path(other["page"]).parent.parent == workdir / "eval"
        assert Path(other["page"]).exists()
        assert other["rows"] != own["rows"][:3]
    shorter = command.override(str(workdir), ["--config.eval.linear.epochs=1"])
    again = run.evaluate(workdir, protocols=["health"], config=shorter)
    assert again["rows"] == own["rows"]
    assert set(again["protocols"]) == {"knn", "classifier", "health"}


def test_a_bank_smaller_than_the_set_is_a_sample_of_it(workdir):
    """Sorted by class, the first rows would know one class only."""
    x, y = tiny_arrays(n=120)
    order = np.argsort(y, kind="stable")
    splits = Splits(sources.from_arrays(x[order], y[order]), sources.from_arrays(*tiny_arrays(n=41, seed=7)))
    config = command.override(str(workdir), ["--config.eval.knn.bank=30"])
    made = run.evaluate(workdir, protocols=["knn"], config=config, splits=splits)
    assert made["rows"][0]["cells"]["raw_pixels"]["value"] > 0.9


def test_damaged_features_are_extracted_again(workdir):
    before = run.evaluate(workdir, protocols=["knn"])
    for path in (workdir / "eval" / "features").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert run.evaluate(workdir, protocols=["knn"], again=True)["rows"] == before["rows"]
    stale = set((workdir / "eval" / "features").iterdir())
    times = {path: path.stat().st_mtime_ns for path in stale}
    run.evaluate(workdir, protocols=["features"], again=True)
    assert all(path.stat().st_mtime_ns > times[path] for path in stale)


def test_the_runs_own_classifier_needs_its_classes(fresh, tmp_path):
    workdir = shutil.copytree(fresh, tmp_path / "run")
    file = workdir / "config.json"
    tree = json.loads(file.read_text())
    tree["data"]["classes"] = ["a", "b", "c", "d"]
    file.write_text(json.dumps(tree))
    x, y = tiny_arrays(n=40)

    def found(*names):
        splits = Splits(*(dataclasses.replace(sources.from_arrays(x, y), classes=names) for _ in range(2)))
        made = run.evaluate(workdir, protocols=["classifier"], splits=splits, again=True)
        return made["protocols"]["classifier"], predictions(workdir).get("classifier/predicted")

    plain, predicted = found("a", "b", "c", "d")
    turned, other = found("d", "c", "b", "a")
    np.testing.assert_array_equal(other, 3 - predicted)
    assert "skipped" in found("0", "1", "2", "3")[0]
    assert "metrics" in plain
    assert "metrics" in turned


@pytest.mark.parametrize(("examples", "batch"), [(11, 8), (40, 16), (16, 16), (9, 8)])
def test_few_images_make_the_same_batches_on_one_and_eight_devices(examples, batch, workdir):
    config = command.override(str(workdir), [])
    found = encoder.load(workdir)
    splits = Splits(arrays(), None)
    for devices in (1, 8):
        subject = Subject(workdir, config, found, splits, sharding.make_mesh(devices))
        assert subject.batch_size(examples) == batch
    with pytest.raises(SimclrError, match="7 images for 8 devices"):
        subject.batch_size(7)


def test_one_in_fifty(workdir, tmp_path):
    """Images that are all alike: whoever says "healthy" is right 98 times of 100, and worth nothing."""
    alike = np.full((200, 12, 12, 1), 99, np.uint8)
    labels = np.array(["healthy"] * 196 + ["sick"] * 4)
    splits = Splits(*(sources.from_arrays(alike, labels) for _ in range(2)))
    made = run.evaluate(workdir, splits=splits, protocols=["knn"])
    for row in made["rows"]:
        for one in row["cells"].values():
            assert one["value"] == 0.98, row["id"]
            assert one["balanced_accuracy"] == {"value": 0.5, "error": 0.0}
            assert one["auroc"] == {"value": 0.5}
            assert one["average_precision"]["value"] == pytest.approx(0.5)
    assert "balanced accuracy 50.0 %, AUROC 0.500, average precision 0.500" in made["verdict"]
    text = report.table(made)
    for title in ("balanced accuracy", "AUROC", "average precision"):
        assert sum(line.startswith(f"  {title}") for line in text) == len(made["rows"])
    page = (workdir / "eval" / "report.html").read_text()
    assert "untrained encoder 50.0 %" in page
    sick = re.search(r"<tr><td>sick</td>.*?</tr>", page)[0]
    assert re.findall(r"<td>(.*?)</td>", sick) == ["sick", "4", "0.0 %", "0.0 %", "0.500", "0.020"]
    assert page.index("<tr><td>sick</td>") < page.index("<tr><td>healthy</td>")
    other = shutil.copytree(workdir, tmp_path / "other")
    assert "kNN, k = 20, T = 0.07: AUROC " in compare.compare([workdir, other], tmp_path / "both.html")


def test_classes_that_the_test_images_lack_are_told(workdir):
    splits = Splits(arrays(), arrays(labels=np.arange(40) % 2))
    made = run.evaluate(workdir, splits=splits, protocols=["knn"])
    told = "Classes without test images, left out of balanced accuracy, AUROC, average precision: 2 of 4."
    assert made["left_out"] == told
    assert told in (workdir / "eval" / "report.html").read_text()
    found = made["protocols"]["knn"]["metrics"]["kNN, k = 200, T = 0.1"]
    assert [one["auroc"] is None for one in found["per_class"]] == [False, False, True, True]


def test_test_images_of_one_class_are_told():
    measured = classified.evaluate(np.eye(3)[[1, 1, 2]], np.array([1, 1, 1]))
    told = report.left_out({"knn": {"metrics": {"kNN": measured}}})
    assert told == "All test images are of one class: no AUROC, no average precision."
    assert set(classified.cell(measured).alike) == {"balanced_accuracy"}


def patients(tmp_path, n=60):
    """list:FILE of images, those of a patient alike; some have no label."""
    rng, rows = np.random.default_rng(0), []
    looks = rng.integers(0, 256, (15, 12, 12), np.uint8)
    for i in range(n):
        patient = int(rng.integers(0, 15))
        Image.fromarray(looks[patient]).save(tmp_path / f"{i:02}.png")
        label = "" if i % 10 == 3 else "xy"[patient % 2]
        split = "test" if i % 6 == 5 else "train"
        rows.append(f"{i:02}.png,{label},{split},p{patient if split == 'train' else 99}")
    (tmp_path / "list.csv").write_text("\n".join(["file,label,split,group", *rows]))
    return f"list:{tmp_path / 'list.csv'}"


@pytest.mark.slow
def test_choices_are_made_between_patients(workdir, tmp_path, monkeypatch):
    """No image of the hold-out is of a patient whose other images are learned from."""
    sides = {"knn": [], "lbfgs": []}

    def votes(bank, bank_labels, queries, *, settings, **kwargs):
        if len(settings) > 2:  # those of the grid
            sides["knn"].append((bank, queries))
        return original_votes(bank, bank_labels, queries, settings=settings, **kwargs)

    def fit_chosen(mesh, features, labels, held, *args, **kwargs):
        rest = np.delete(np.arange(len(labels)), held)
        sides["lbfgs"].append((features[rest], features[held]))
        return original_fit(mesh, features, labels, held, *args, **kwargs)

    original_votes, original_fit = knn.votes, linear.fit_chosen
    monkeypatch.setattr(knn, "votes", votes)
    monkeypatch.setattr(linear, "fit_chosen", fit_chosen)
    config = command.override(
        str(workdir),
        [
            f"--config.data.source={patients(tmp_path)}",
            "--config.eval.linear.iterations=1",
        ],
    )
    run.evaluate(workdir, protocols=["knn", "lbfgs"], config=config)
    assert len(sides["knn"]) == 4
    assert len(sides["lbfgs"]) == 3
    for rest, held in sides["knn"] + sides["lbfgs"]:
        assert len(held) >= 5
        apart = np.abs(rest[:, None].astype(np.float64) - held[None]).max(axis=2)
        assert apart.min() > 1e-4  # a patient's images have the same features


def test_other_groups_are_another_subject(workdir):
    whole = arrays()
    found = encoder.load(workdir)
    keys = set()
    for groups in (None, np.arange(40) // 4, np.arange(40) // 8):
        splits = Splits(dataclasses.replace(whole, groups=groups), None)
        keys.add(Subject(workdir, found.config, found, splits, sharding.make_mesh(1)).key)
    assert len(keys) == 3


def test_of_many_classes_the_worst_are_shown():
    per_class = [
        {
            "support": i + 1,
            "recall": i / 40,
            "precision": 0.5,
            "f1": 0.5,
            "auroc": 0.9,
            "average_precision": 0.1,
        }
        for i in range(40)
    ]
    metrics = {"kNN": {"per_class": per_class}}
    made = {"classes": [f"<{i}>" for i in range(40)], "protocols": {"knn": {"metrics": metrics}}}
    shown = page._classes(made)
    assert re.findall(r"<td>&lt;(\d+)&gt;</td>", shown) == [str(i) for i in range(30)]
    assert "the worst 30 of 40" in shown


def test_runs_side_by_side(fresh, workdir, tmp_path):
    first = shutil.copytree(fresh, tmp_path / "first")
    run.evaluate(first, protocols=["lbfgs", "health"])
    with pytest.raises(SimclrError, match="not evaluated yet"):
        compare.compare([first, workdir], tmp_path / "both.html")
    file = workdir / "config.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 3'))
    run.evaluate(workdir, protocols=["lbfgs"])
    text = compare.compare([first, workdir], tmp_path / "both.html")
    assert "linear, L-BFGS" in text
    assert [line.split() for line in text.splitlines() if line.startswith("seed")] == [["seed", "0", "3"]]
    assert "Where the configs differ" in (tmp_path / "both.html").read_text()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "--workdir is missing"),
        (["--workdir=/nowhere"], "/nowhere: no config.json"),
        (["--workdir=RUN", "--protocols=knn,foo"], "--protocols=foo: must be one or more of features"),
        (["--workdir=RUN", "--config.eval.lin=3"], "config.eval.lin: no such field"),
        (["--workdir=RUN", "--config.eval.batch_size=abc"], "--config.eval.batch_size=abc"),
        (["--workdir=RUN", "--config.eval.batch_size=0"], "config.eval.batch_size=0: must be above 0"),
        (["--workdir=RUN", "--config.model.width=2"], "config.model.width=2.0"),
        (["--workdir=RUN", "--config.data.source="], "does not say where images are"),
        (["--workdir=RUN", "--config.eval.endpoint=foo"], "config.eval.endpoint='foo': there are"),
        (["--workdir=RUN", "--protocols=transfer"], "--transfer"),
        (["--workdir=RUN", "--step=3"], "no checkpoint 3; there are: 7"),
        (["--workdir=RUN", "word"], "'word': not understood"),
        (["--compare", "RUN"], "--compare: give two runs"),
    ],
)
def test_mistakes(words, line, fresh, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([word.replace("RUN", str(fresh)) for word in words])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert line in error
    assert "\n" not in error


def test_published_figures_are_of_the_same_setting():
    config = default()
    config.data.source = "tfds:imagenet2012"
    assert published.figures(config)["sgd"] == Cell(pytest.approx(0.646), by="SimCLR paper, Table B.1")
    config.train.batch_size = 333
    assert "sgd" not in published.figures(config)
    config.model.depth = 34
    assert not published.figures(config)


def test_the_verdict():
    def row(**values):
        return [Row("lbfgs", "linear", {who: Cell(v, v - 0.02, v + 0.02) for who, v in values.items()})]

    good = report.verdict(row(simclr=0.9, untrained=0.8, raw_pixels=0.89), None, "")
    assert good.startswith("linear: 90.0 % of the test images right (95 %: 88.0 to 92.0)")
    assert "better than the untrained encoder" in good
    assert "not clearly better than raw pixels" in good
    bad = report.verdict(row(simclr=0.5, untrained=0.8), {"simclr": {"collapsed": True}}, "")
    assert "COLLAPSED" in bad
    assert "WORSE than the untrained encoder" in bad
