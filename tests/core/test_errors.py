import pickle

import pytest

import axolotl_sdft.errors as public
from axolotl_sdft.core import errors

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
    assert set(errors.SdftError.__subclasses__()) == set(STDLIB_BASES)


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
