"""Generation backends: a room each, imported when it is chosen."""

from pathlib import Path
from typing import TYPE_CHECKING

from axolotl_sdft.config import OpenAIGeneration, TransformersGeneration, VLLMGeneration
from axolotl_sdft.core.errors import MissingExtraError
from axolotl_sdft.inference.interfaces import Backend, BackendFactory
from axolotl_sdft.plugins.specifications import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable


def transformers_backend(model_dir: Path, config: TransformersGeneration) -> Backend:
    """Return the backend that generates in this process with transformers; the model loads on first use."""
    from axolotl_sdft.inference.local.backend import TransformersBackend

    return TransformersBackend(model_dir, config)


def vllm_backend(model_dir: Path, config: VLLMGeneration) -> Backend:
    """Return the backend that generates with a vLLM server of its own, which starts on first use.

    Raises:
        MissingExtraError: The openai package is not installed.
    """
    _require_openai("vllm")
    from axolotl_sdft.inference.vllm.backend import VLLMBackend

    return VLLMBackend(model_dir, config)


def openai_backend(model_dir: Path, config: OpenAIGeneration) -> Backend:
    """Return the backend that asks the servers of ``base_urls``; nothing is sent before it is used.

    Raises:
        MissingExtraError: The openai package is not installed.
    """
    _require_openai("openai")
    from axolotl_sdft.inference.openai.backend import OpenAIBackend

    return OpenAIBackend(model_dir, config)


def _require_openai(backend: str) -> None:
    try:
        import openai

        _ = openai.DefaultAsyncHttpxClient  # none before 1.17
    except (ImportError, AttributeError) as err:
        raise MissingExtraError(
            f"self_distillation.generation.backend is {backend}, but the openai package can't be used ({err}); "
            "pip install 'axolotl-sdft[openai]'"
        ) from err


@hookimpl
def sdft_register_backends(register: "Callable[[str, BackendFactory], None]") -> None:
    """Register the built-in backends."""
    register("transformers", transformers_backend)
    register("openai", openai_backend)
    register("vllm", vllm_backend)
