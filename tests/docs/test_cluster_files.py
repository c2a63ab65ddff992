"""The files for Slurm and Kubernetes can be read by what reads them, and agree with themselves and this package."""

import re
import shlex
import subprocess

import pytest
import yaml

pytest.importorskip("axolotl")

from tests.configs.test_example_configs import sdft_plugin, validate
from tests.docs.pages import REPOSITORY
from tests.docs.test_commands import parse_axolotl

__all__ = ["sdft_plugin"]  # a fixture: Axolotl's schema knows our keys

CLUSTER = REPOSITORY / "example_configs" / "cluster"
SLURM = CLUSTER / "rewrite_and_train.slurm"


@pytest.fixture(scope="module")
def manifests():
    """The manifest's documents by their kind."""
    documents = list(yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text(encoding="utf-8")))
    assert all({"apiVersion", "kind", "metadata"} <= set(document) for document in documents)
    return {document["kind"]: document for document in documents}


def mounted(container, name):
    """Where a container finds a volume."""
    return next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == name)


def test_bash_can_read_the_slurm_script():
    subprocess.run(["bash", "-n", SLURM], check=True)


def test_the_slurm_script_calls_axolotl_with_commands_that_it_has(newcomer_folder):
    text = SLURM.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r'"\$AXOLOTL" (.+?)(?:\'|$)', text, flags=re.MULTILINE)
    assert [line.split()[0] for line in found] == ["self-distill", "train"]
    for line in found:
        parse_axolotl(shlex.split(line.replace("$CONFIG", "config.yml")))


def test_the_servers_of_the_manifest_are_those_that_its_service_gives_names_to(manifests):
    service, servers = manifests["Service"], manifests["StatefulSet"]
    labels = servers["spec"]["template"]["metadata"]["labels"]
    assert servers["spec"]["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == labels == servers["spec"]["selector"]["matchLabels"]
    assert service["spec"]["clusterIP"] == "None"  # else the single servers have no names


def test_the_configuration_of_the_manifest_is_valid_and_names_each_server(manifests):
    config = yaml.safe_load(manifests["ConfigMap"]["data"]["config.yml"])
    validate(config)
    name, spec = manifests["Service"]["metadata"]["name"], manifests["StatefulSet"]["spec"]
    port = manifests["Service"]["spec"]["ports"][0]["port"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["args"][0] == config["base_model"]
    assert str(port) in container["args"]
    assert config["self_distillation"]["generation"]["base_urls"] == [
        f"http://{name}-{number}.{name}:{port}/v1" for number in range(spec["replicas"])
    ]


def test_the_job_of_the_manifest_runs_a_command_that_there_is_and_mounts_what_there_is(manifests, newcomer_folder):
    spec = manifests["Job"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    *command, config = container["command"][1:]
    assert config == f"{mounted(container, 'config')}/{next(iter(manifests['ConfigMap']['data']))}"
    parse_axolotl([*command, "config.yml"])
    places = {volume["name"]: volume for volume in spec["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(places)
    assert (
        places["work"]["persistentVolumeClaim"]["claimName"] == manifests["PersistentVolumeClaim"]["metadata"]["name"]
    )
    assert places["config"]["configMap"]["name"] == manifests["ConfigMap"]["metadata"]["name"]
