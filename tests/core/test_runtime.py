import pytest

from axolotl_sdft.core import runtime


def test_without_a_launcher_this_is_the_only_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (runtime.rank(), runtime.world_size()) == (0, 1)


def test_the_launcher_says_which_process_this_is(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (runtime.rank(), runtime.world_size()) == (3, 4)


def test_each_process_of_a_machine_gets_its_own_accelerator(monkeypatch):
    import torch

    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert runtime.local_device() == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert runtime.local_device() == torch.device("cuda", 2)


@pytest.mark.parametrize(
    ("has_onednn", "has_instructions", "expected"),
    [(True, True, "bfloat16"), (True, False, "float32"), (False, True, "float32")],
)
def test_a_cpu_computes_in_bfloat16_only_where_it_has_instructions_for_it(
    monkeypatch, has_onednn, has_instructions, expected
):
    import torch

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_onednn)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_instructions)
    assert runtime.compute_dtype("auto", torch.device("cpu")) == getattr(torch, expected)


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_that_would_emulate_bfloat16_computes_in_float16(monkeypatch, has_bfloat16, expected):
    import torch

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert runtime.compute_dtype("auto", torch.device("cuda")) == getattr(torch, expected)


def test_a_number_format_that_is_named_is_taken_as_it_is():
    import torch

    assert runtime.compute_dtype("float16", torch.device("cpu")) == torch.float16
