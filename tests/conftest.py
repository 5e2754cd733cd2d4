"""Eight CPU devices, strict shapes, and a small run that every test can vary."""

import os
import shutil

# Programs that run for a moment take longest to compile: without the optimiser, and (but for make test-all)
# by the older emitter of fused loops, which takes half the time.
os.environ.setdefault("TEST_XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + f" --xla_backend_optimization_level=0 {os.environ['TEST_XLA_FLAGS']}"
    + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
import pytest

from simclr_jax import registry, sharding, train
from simclr_jax.config import default, duration, flatten, set_field
from simclr_jax.convert import workdir as conversion
from simclr_jax.data import sources
from simclr_jax.data.splits import Splits
from simclr_jax.models import simclr
from simclr_jax.step import OBJECTIVES
from simclr_jax.tasks import create_task

jax.config.update("jax_numpy_rank_promotion", "raise")

# The same for processes of their own, with other devices.
QUICK = f"--xla_backend_optimization_level=0 {os.environ['TEST_XLA_FLAGS']}"


SLOW = (  # whose kind quicker tests have a case of; make test-all runs them
    "test_evaluate.py::test_little_to_score[train1",
    "test_evaluate.py::test_little_to_score[train2",
    "test_formats.py::test_a_run_notes_its_window[none]",
    "test_nonfinite.py::test_a_diverging_run_keeps_the_step_and_replay_makes_it_again[five",
    "test_microbatch.py::test_rematerialised_blocks_have_the_same_gradient",
    "test_structure.py::test_config_builds_its_model_and_one_step[simclrv2_finetune]",
    "test_structure.py::test_config_builds_its_model_and_one_step[folder]",
    "test_evaluate.py::test_little_to_score[train3",
    "test_evaluate.py::test_nothing_to_score[no labels in test]",
    "test_tiled.py::test_training_chooses_it_above_the_budget[1]",
    "test_tiled.py::test_value_gradient_and_metrics[64-0.01",
    "test_tiled.py::test_value_gradient_and_metrics[8-0.1-6-1",
    "test_tasks.py::test_preprocessing_is_the_evaluations[24-bicubic]",
    "test_tasks.py::test_stopped_and_resumed_is_never_stopped[distill]",
    "test_structure.py::test_config_builds_its_model_and_one_step[simclrv2]",
    "test_structure.py::test_config_builds_its_model_and_one_step[cifar10]",
    "test_structure.py::test_config_builds_its_model_and_one_step[fashion_mnist]",
    "test_convert_torch.py::test_torchvision_outputs[resnet50]",
    "test_signals.py::test_in_every_phase_of_a_run[scores",
    "test_signals.py::test_in_every_phase_of_a_run[save",
    "test_geometry.py::test_views_are_distributed_as_the_hosts[bilinear]",
    "test_microbatch.py::test_equal_to_the_whole_batch_with_grouped_batch_norm[1]",
    "test_storage.py::test_a_disk_that_fails_during_a_run[read-only-checkpoints]",
    "test_storage.py::test_a_disk_that_fails_during_a_run[read-only-.]",
    "test_signals.py::test_in_every_phase_of_a_run[step",
    "test_evaluate.py::test_little_to_score[train0",
    "test_formats.py::test_a_run_notes_its_window[all]",
    "test_tasks.py::test_stopped_and_resumed_is_never_stopped[supervised]",
    "test_tiled.py::test_training_chooses_it_above_the_budget[8]",
    "test_checkpoints.py::test_a_damaged_file_gives_the_same_numbers_or_is_told[truncated]",
    "test_checkpoints.py::test_a_flipped_bit_in_a_data_block_goes_on_from_the_older_checkpoint[model_state]",
    "test_checkpoints.py::test_a_flipped_bit_in_a_data_block_goes_on_from_the_older_checkpoint[opt_state]",
    "test_checkpoints.py::test_a_damaged_file_gives_the_same_numbers_or_is_told[flipped]",
    "test_doc_commands.py::test_every_command_of_a_page[use]",
    "test_doc_commands.py::test_every_command_of_a_page[decoder]",
    "test_doc_commands.py::test_every_command_of_a_page[generate]",
    "test_doc_commands.py::test_every_command_of_a_page[tables]",
    "test_doctor.py::test_memory_is_that_of_the_run[host]",
    "test_losses.py::test_eight_devices_give_the_value_and_gradient_of_one[dclw",
    "test_losses.py::test_eight_devices_give_the_value_and_gradient_of_one[supcon",
    "test_masking.py::test_microbatches_on_eight_devices_have_the_gradient_of_the_whole_on_one[blocks]",
    "test_models.py::test_no_gradient_below_what_is_frozen[0]",
    "test_parity.py::test_equal_to_the_original[images]",
    "test_parity.py::test_equal_to_the_original[models]",
    "test_plain_crops.py::test_small_images_are_enlarged[device]",
    "test_registry.py::test_a_queue_stays_whole_on_every_device[1]",
    "test_restore.py::test_it_learns_to_denoise",
    "test_robustness.py::test_fgsm_is_the_strongest_attack_on_a_linear_model[0.05]",
    "test_structure.py::test_config_builds_its_model_and_one_step[vit]",
    "test_structure.py::test_config_builds_its_model_and_one_step[cifar100]",
    "test_structure.py::test_config_builds_its_model_and_one_step[distill]",
    "test_evaluate.py::test_duplicates_and_outliers_have_the_names",
    "test_evaluate.py::test_one_in_fifty",
    "test_evaluate.py::test_nothing_to_score[one class only]",
    "test_evaluate.py::test_nothing_to_score[no test split]",
    "test_evaluate.py::test_a_bank_smaller_than_the_set",
    "test_evaluate.py::test_features_do_not_depend_on_the_batch",
    "test_tasks.py::test_linear_evaluation_moves_nothing_but_the_classifier[1]",
    "test_restore.py::test_the_loss_is_the_formula[jpeg]",
    "test_restore.py::test_the_recipe_starts_from_any_run",
    "test_signals.py::test_a_run_in_a_thread_installs_nothing",
    "test_microbatch.py::test_a_run_in_microbatches",
    "test_masking.py::test_what_is_hidden_has_no_influence[blocks]",
    "test_nonfinite.py::test_other_numbers_that_are_none",
    "test_nonfinite.py::test_a_second_divergence_at_an_earlier_step",
    "test_storage.py::test_every_file_of_a_run[metrics.jsonl]",
    "test_storage.py::test_every_file_of_a_run[summary.json]",
    "test_doctor.py::test_a_run_with_faults",
    "test_doctor.py::test_a_folder_of_images",
    "test_doctor.py::test_bytes_of_the_arguments",
    "test_geometry.py::test_flip_turns_the_view_over",
    "test_structure.py::test_config_builds_its_model_and_one_step[finetune]",
    "test_structure.py::test_config_builds_its_model_and_one_step[mnist]",
    "test_structure.py::test_config_builds_its_model_and_one_step[ablation]",
    "test_models.py::test_endpoints[200]",
    "test_models.py::test_parameter_counts[200-2",
    "test_models.py::test_no_gradient_below_what_is_frozen[2]",
    "test_models.py::test_drop_block_in_training_alone",
    "test_convert_torch.py::test_torchvision_outputs[cifar]",
    "test_convert_torch.py::test_torchvision_outputs[odd]",
    "test_convert_torch.py::test_original_to_torch_and_back[sk_cifar]",
    "test_convert_torch.py::test_original_to_torch_and_back[pad2]",
    "test_convert_google.py::test_every_architecture_is_inferred_from_its_shapes[tf1-depth=200",
    "test_decoder.py::test_gradients_reach_every_parameter[features]",
    "test_decoder.py::test_a_residual_begins_as_the_image[tokens]",
    "test_measures.py::test_several_sets_at_once_are_each_by_itself[gpu]",
    "test_robustness.py::test_attack_on_a_certain_classifier",
    "test_tiled.py::test_value_gradient_and_metrics[64-0.1-50",
    "test_generate.py::test_a_flow_is_exact[5]",
    "test_memory.py::test_evaluation_sees_what_the_hosts_does[40]",
    "test_data.py::test_positions_do_not_shift_past_an_unreadable_file",
    "test_compress.py::test_without_channels_that_are_zero_nothing_changes[selective kernels]",
    "test_multi_crop.py::test_small_views_have_numbers_of_their_own[all]",
)


def pytest_collection_modifyitems(items):
    """Marks the slow cases."""
    for item in items:
        if any(case in item.nodeid for case in SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _compile_cache(tmp_path_factory):
    """One cache of compiled programs for the whole session, its workers and subprocesses included."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    where = str(base / "xla")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = where
    jax.config.update("jax_compilation_cache_dir", where)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(workdir of 12 steps with checkpoints 4, 8 and 12, its config, its images)."""
    workdir, config, splits = tmp_path_factory.mktemp("finished") / "run", tiny_config(), tiny_splits()
    train.run(config, workdir, splits=splits)
    return workdir, config, splits


@pytest.fixture
def copy(finished, tmp_path):
    """The same, a copy of one's own."""
    workdir, config, splits = finished
    return shutil.copytree(workdir, tmp_path / "run"), config, splits


def tiny_config(**overrides):
    """A few seconds of training on 12×12 images; overrides are dotted fields with __ for dots."""
    c = default()
    c.data.source = "arrays"
    c.data.image_size = 12
    c.data.channels = 1
    c.augment.blur = 0.0
    c.model.encoder = "cnn"
    c.model.width = 0.25
    c.model.projection_dim = 8
    c.loss.temperature = 0.5
    c.optimizer.name = "adamw"
    c.optimizer.scaling = "none"
    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup = duration(steps=2)
    c.train.steps = 12
    c.train.batch_size = 16
    c.mesh.devices = 1
    c.log.every = duration(steps=1)
    c.checkpoint.every = duration(steps=4)
    c.eval.every = duration()
    c.eval.batch_size = 32
    c.eval.final = False
    c.eval.figures = False
    c.eval.linear.draws = 2
    c.eval.linear.iterations = 20
    c.compile_cache = ""
    for name, value in overrides.items():
        set_field(c, name.replace("__", "."), value)
    return c


def tiny_arrays(n=80, classes=4, size=12, channels=1, seed=0):
    """Noisy images of `classes` patterns, learnable but not trivial: (images, labels)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    patterns = np.random.default_rng(1).integers(0, 256, (classes, size, size, channels))
    noise = rng.integers(0, 256, (n, size, size, channels))
    return (0.6 * patterns[labels] + 0.4 * noise).astype(np.uint8), labels.astype(np.int32)


def untrained_run(workdir, config, classes=4):
    """The workdir of a run of `config` that has not learned anything, made in a moment."""
    model, side = simclr.create(config.model, classes=classes), config.data.image_size
    images = np.zeros((2, side, side, config.data.channels), model.encoder.dtype)
    variables = jax.jit(lambda key: simclr.init(model, key, images))(jax.random.key(5))
    if registry.decodes(flatten(config)):
        task = create_task(config, tiny_splits(classes=classes), sharding.make_mesh(1))
        own, _ = jax.jit(lambda: train.init_objectives(task, 6))()
        variables["params"] = {**variables["params"], OBJECTIVES: own}
    conversion.write(workdir, config, jax.device_get(variables), step=7, origin="random")
    return workdir


def tiny_splits(**kwargs):
    """Train and test split of `tiny_arrays`."""
    train = sources.from_arrays(*tiny_arrays(**kwargs))
    test = sources.from_arrays(*tiny_arrays(**{**kwargs, "n": 40, "seed": 7}))
    return Splits(train, test)
