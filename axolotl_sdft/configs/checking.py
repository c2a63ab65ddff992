"""Says whether a configuration would run for others."""

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config.yaml_file import YamlFile
from axolotl_sdft.configs.catalogue import REQUIRED_KEYS, read_description
from axolotl_sdft.configs.findings import Finding, advice, fault, secret_findings
from axolotl_sdft.configs.memory_plan import MemoryPlan, memory_plan
from axolotl_sdft.configs.places import place_findings
from axolotl_sdft.core.errors import Explain, MissingExtraError, SdftError, error_context, first_line

if TYPE_CHECKING:
    from axolotl_sdft.integrations.axolotl.blocks import Blocks
    from axolotl_sdft.integrations.axolotl.datasets import DatasetConfig

_PLUGIN = "axolotl_sdft.SDFTPlugin"


def check_file(file: YamlFile, folder: Path) -> list[Finding]:
    """Return all that keeps a configuration from being of use to others, faults first.

    Nothing is loaded from the Hub, and no stage runs.

    Args:
        file: What stands in it.
        folder: Where it lies.
    """
    raw = file.values
    about_blocks = [*_block_findings(raw)]
    told = {finding.key for finding in about_blocks}
    findings = [
        *(fault(repeated.key, repeated.sentence()) for repeated in file.repeated),
        *_description_findings(file.text),
        *secret_findings(raw, file.text),
        *place_findings(raw, file.text, folder),
        *about_blocks,
        *(finding for finding in _schema_findings(raw) if finding.key not in told),
    ]
    return sorted(dict.fromkeys(findings), key=lambda finding: finding.level != "fault")


def check_memory(file: YamlFile) -> tuple[MemoryPlan | None, list[Finding]]:
    """Return what a configuration needs in memory, and which stages do not fit the GPU that its description names.

    Nothing is loaded from the Hub: the model's ``config.json`` must be in a local folder or in the Hub's cache. Without
    it, or where the blocks are wrong, there is no plan; a finding says why.
    """
    from axolotl_sdft.integrations.axolotl.blocks import read_blocks

    try:
        plan = memory_plan(file.values, read_blocks(file.values), read_description(file.text).get("needs", ""))
    except SdftError as err:
        return None, [advice("memory", f"was not computed: {first_line(err)}")]
    except (TypeError, ValueError, AttributeError) as err:  # a value of another kind, which Axolotl's schema refuses
        return None, [advice("memory", f"was not computed: a key holds a value of another kind ({first_line(err)})")]
    if plan is None:
        named = file.values.get("base_model")
        return None, [advice("memory", f"was not computed: the config.json of {named!r} is not on this machine")]
    return plan, list(plan.findings())


def _description_findings(text: str) -> Iterator[Finding]:
    description = read_description(text)
    missing = [key for key in REQUIRED_KEYS if key not in description]
    if missing:
        yield fault(
            "description",
            f"the first lines do not say {', '.join(missing)}; write lines such as '# {missing[0]}: ...' at the top",
        )


def _block_findings(raw: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what the package's own rules refuse."""
    from axolotl_sdft.integrations.axolotl.blocks import empty_blocks, read_blocks
    from axolotl_sdft.integrations.axolotl.datasets import check_overrides
    from axolotl_sdft.integrations.axolotl.rules import check_rules

    plugins = raw.get("plugins") or []
    if isinstance(plugins, list) and _PLUGIN not in plugins:
        yield fault("plugins", f"{_PLUGIN} is not listed, so Axolotl would drop the blocks without a word; add it")
    for line in empty_blocks(raw):
        yield _fault_of(line)
    try:
        blocks = read_blocks(raw)
        check_overrides(raw)
        check_rules(raw, blocks, _other_trainers(raw) if blocks.trainer_blocks else {})
    except SdftError as err:
        yield from _findings_of(err)
        return
    yield from _name_findings(raw, blocks)


def _other_trainers(raw: Mapping[str, Any]) -> dict[str, str]:
    if find_spec("axolotl") is None:
        return {}
    from axolotl_sdft.configs.findings import trainers_of_plugins

    return trainers_of_plugins(raw, _PLUGIN)


def _name_findings(raw: Mapping[str, Any], blocks: "Blocks") -> Iterator[Finding]:
    """Yield the names that a run would look up in vain, and the options that it would refuse."""
    from axolotl_sdft.evaluation.measures.answer_accuracy import right_answer_checks
    from axolotl_sdft.integrations.axolotl.datasets import dataset_config, own_key
    from axolotl_sdft.plugins.registry import METRICS, registry

    if blocks.layer_pruning is not None:
        metric = blocks.layer_pruning.metric
        yield from _attempt(lambda: registry().resolve(METRICS, metric, "layer_pruning.metric"))
    if blocks.self_distillation is not None:
        for index, entry in enumerate(raw["datasets"]):
            own = dataset_config(raw, index)
            if own.enabled and isinstance(entry, Mapping):
                for look_up in _look_ups(own, entry, f"datasets[{index}]"):
                    yield from _attempt(look_up, own_key(raw, index))
    report = blocks.recovery_report
    if report is not None and report.exact_match is not None:
        exact_match = report.exact_match
        yield from _attempt(lambda: right_answer_checks(exact_match))


def _look_ups(own: "DatasetConfig", entry: Mapping[str, Any], where: str) -> list[Callable[[], Any]]:
    """Return what a run does with the names in the settings of a dataset before it loads anything."""
    from axolotl_sdft.distillation.checks import resolve_checks
    from axolotl_sdft.distillation.rows.formats import PROMPT_FIELD, resolve_row_format
    from axolotl_sdft.distillation.templates import resolve_template
    from axolotl_sdft.plugins.registry import BACKENDS, registry

    backend = own.generation.backend
    prompt = {PROMPT_FIELD: own.prompt_field} if own.prompt_field else {}
    return [
        lambda: [resolve_template(template, own.examples) for template in own.templates],
        lambda: resolve_checks(own.checks),
        lambda: registry().resolve(BACKENDS, backend, "self_distillation.generation.backend"),
        lambda: resolve_row_format({**entry, **prompt}, where),
    ]


def _attempt(look_up: Callable[[], Any], *explanations: Explain) -> Iterator[Finding]:
    try:
        with error_context(*explanations):
            look_up()
    except MissingExtraError as err:  # this machine's lack, not the configuration's
        yield advice("packages", first_line(err))
    except SdftError as err:
        yield from _findings_of(err)


def _findings_of(err: SdftError) -> Iterator[Finding]:
    """Yield a fault for each line of an error, whose first word is the key."""
    yield from map(_fault_of, str(err).splitlines())


def _fault_of(line: str) -> Finding:
    key, _, message = line.partition(" ")
    return fault(key.rstrip(":"), message)


def _schema_findings(raw: Mapping[str, Any]) -> Iterator[Finding]:
    if find_spec("axolotl") is None:
        yield advice("Axolotl", "it is not installed, so its own keys were not checked")
        return
    from axolotl_sdft.configs.findings import schema_findings

    yield from schema_findings(raw)
