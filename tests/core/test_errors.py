import pickle

import pytest
import torch

import axolotl_sdft.errors as public
from axolotl_sdft.core import errors
from axolotl_sdft.core.errors import error_context, failure, keyed, memory_shortage

STDLIB_BASES = {
    errors.ConfigError: ValueError,
    errors.UnknownNameError: LookupError,
    errors.PluginError: TypeError,
    errors.CheckpointError: ValueError,
    errors.DatasetError: ValueError,
    errors.BackendError: RuntimeError,
    errors.ArtifactError: OSError,
    errors.MissingExtraError: ImportError,
    errors.ServerError: ConnectionError,
}


def test_the_table_above_names_every_child_of_the_root():
    children = {child for child in errors.SdftError.__subclasses__() if child.__module__ == errors.__name__}
    assert children == set(STDLIB_BASES)


def test_all_of_them_can_be_imported_from_the_public_module():
    assert {getattr(public, name) for name in public.__all__} == {errors.SdftError, *STDLIB_BASES}


@pytest.mark.parametrize("child", STDLIB_BASES, ids=lambda child: child.__name__)
def test_a_child_is_caught_as_the_root_and_as_its_standard_type(child):
    with pytest.raises(errors.SdftError, match=r"alpha is 3"):
        raise child("alpha is 3")
    with pytest.raises(STDLIB_BASES[child], match=r"alpha is 3"):
        raise child("alpha is 3")


@pytest.mark.parametrize("child", STDLIB_BASES, ids=lambda child: child.__name__)
def test_an_error_survives_pickling_as_between_worker_processes(child):
    copy = pickle.loads(pickle.dumps(child("alpha is 3")))
    assert type(copy) is child
    assert str(copy) == "alpha is 3"


@pytest.mark.parametrize("child", STDLIB_BASES, ids=lambda child: child.__name__)
def test_a_child_says_when_it_is_raised(child):
    assert child.__doc__ is not None
    assert child.__doc__.endswith(".")


LOADING = failure("base_model (m) can't be loaded", "name another folder")


def test_what_another_package_raises_is_told_with_its_type_and_first_line():
    message = r"^base_model \(m\) can't be loaded \(OSError: no such file\); name another folder$"
    with pytest.raises(errors.CheckpointError, match=message) as caught, error_context(LOADING):
        raise OSError("no such file\nTraceback: ...")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_failure_without_a_way_out_ends_with_its_reason():
    context = error_context(failure("no rows", None, errors.DatasetError))
    with pytest.raises(errors.DatasetError, match=r"^no rows \(KeyError: 'text'\)$"), context:
        raise KeyError("text")


def test_an_error_without_a_text_is_told_by_its_type():
    with (
        pytest.raises(errors.CheckpointError, match=r"loaded \(ValueError: ValueError\); name"),
        error_context(LOADING),
    ):
        raise ValueError


def test_the_error_may_be_of_another_kind():
    context = error_context(failure("chat_template fails", "correct it", errors.ConfigError))
    with pytest.raises(errors.ConfigError, match=r"^chat_template fails \(KeyError: 'role'\); correct it$"), context:
        raise KeyError("role")


@pytest.mark.parametrize(
    "own", [errors.MissingExtraError("install peft"), MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory")]
)
def test_errors_that_say_enough_themselves_are_left_as_they_are(own):
    with pytest.raises(type(own)) as caught, error_context(LOADING):
        raise own
    assert caught.value is own


def test_a_lack_of_memory_is_told_apart_from_other_failures():
    context = error_context(memory_shortage("the model was loaded", "set device_map: auto"), LOADING)
    message = r"^memory ran out while the model was loaded \(CUDA out of memory\); set device_map: auto$"
    with pytest.raises(errors.CheckpointError, match=message), context:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    context = error_context(memory_shortage("the model was loaded", "set device_map: auto"), LOADING)
    with pytest.raises(errors.CheckpointError, match=r"can't be loaded \(RuntimeError: size mismatch\)"), context:
        raise RuntimeError("size mismatch")


def test_a_key_is_put_before_what_lacks_it_and_the_kind_of_error_stays():
    named = keyed(lambda err: "models: " if isinstance(err, errors.ConfigError) else "")
    with pytest.raises(errors.ConfigError, match=r"^models: two are needed$"), error_context(named):
        raise errors.ConfigError("two are needed")
    with pytest.raises(errors.ArtifactError, match=r"^the disk is full$"), error_context(named):
        raise errors.ArtifactError("the disk is full")
    with pytest.raises(KeyError, match=r"^'two'$"), error_context(named):
        raise KeyError("two")


@pytest.mark.parametrize(
    ("err", "expected"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("no more"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("[enforce fail] not enough memory: you tried to allocate"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_lack_of_memory_is_known_by_type_or_by_what_builds_of_torch_say(err, expected):
    assert errors.is_out_of_memory(err) is expected
