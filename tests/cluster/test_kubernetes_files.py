"""cluster/k8s: the operator's fields, Kubernetes' pods, Serve's configuration, Ray's runtime environments."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve.schema import ServeDeploySchema

from tests.cluster.deployment import KUBERAY, KUBERNETES, Plain, check_kuberay, check_kubernetes, load, pods
from tests.cluster.kuberay import RayJob, RayService

PLAIN = [file for file in KUBERNETES if file not in KUBERAY]
REFUSALS = (ValidationError, kubernetes_validate.ValidationError)


def _of(name: str) -> Plain:
    return load(next(file for file in KUBERNETES if file.name == name))


@pytest.mark.parametrize("file", KUBERAY, ids=lambda file: file.name)
def test_the_operator_understands_it(file: Path) -> None:
    """Every field is one of ray.io/v1, and every pod one that Kubernetes starts."""
    check_kuberay(load(file))


@pytest.mark.parametrize("file", PLAIN, ids=lambda file: file.name)
def test_kubernetes_understands_it(file: Path) -> None:
    """What is not the operator's is Kubernetes' own."""
    check_kubernetes(load(file))


def _misspelt_option(plain: Plain) -> None:
    plain["spec"]["authOption"] = plain["spec"].pop("authOptions")


def _number_as_parameter(plain: Plain) -> None:
    plain["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def _misspelt_resources(plain: Plain) -> None:
    pod = plain["spec"]["workerGroupSpecs"][0]["template"]["spec"]
    pod["containers"][0]["resource"] = pod["containers"][0].pop("resources")


def _wrong_medium_type(plain: Plain) -> None:
    plain["spec"]["headGroupSpec"]["template"]["spec"]["volumes"][0]["emptyDir"] = ["Memory"]


def _no_mode(plain: Plain) -> None:
    plain["spec"]["authOptions"]["mode"] = "tokens"


@pytest.mark.parametrize(
    "damage", [_misspelt_option, _number_as_parameter, _misspelt_resources, _wrong_medium_type, _no_mode]
)
def test_a_damaged_cluster_is_refused(damage: Callable[[Plain], None]) -> None:
    """Both checks are able to fail: the operator's fields and Kubernetes' own."""
    damaged = deepcopy(_of("raycluster.yaml"))
    damage(damaged)
    with pytest.raises(REFUSALS):
        check_kuberay(damaged)


def test_a_damaged_policy_is_refused() -> None:
    """A misspelt selector would let everybody in."""
    damaged = _of("network-policy.yaml")
    damaged["spec"]["podSelectors"] = damaged["spec"].pop("podSelector")
    with pytest.raises(kubernetes_validate.ValidationError):
        check_kubernetes(damaged)


@pytest.mark.parametrize("file", KUBERAY, ids=lambda file: file.name)
def test_pods_are_confined_sized_and_share_the_files(file: Path) -> None:
    """Not root, no capabilities, requests within limits, the object store in memory, one volume for everybody."""
    resource = check_kuberay(load(file))
    assert resource.cluster.authOptions.mode == "token"
    for pod in pods(resource):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        assert volumes["files"]["persistentVolumeClaim"]["claimName"] == _of("storage.yaml")["metadata"]["name"]
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/dev/shm", "/shared"}
            assert container["workingDir"] == "/shared"
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert float(requests["cpu"]) <= float(limits["cpu"])
            assert _gib(requests["memory"]) <= _gib(limits["memory"])
            assert _gib(volumes["shm"]["emptyDir"]["sizeLimit"]) <= _gib(limits["memory"]) / 2


def test_all_clusters_are_the_same_but_for_their_size() -> None:
    """One file is mended, and another forgotten: not here."""
    clusters = []
    for file in KUBERAY:
        cluster = check_kuberay(load(file)).cluster.model_dump()
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            containers = group["template"]["spec"]["containers"]
            containers[0]["env"] = [entry for entry in containers[0]["env"] if entry["name"] != "SERVE_API_KEY"]
        for group in cluster["workerGroupSpecs"]:
            assert group.pop("replicas") == group.pop("minReplicas") == group.pop("maxReplicas")
        clusters.append(cluster)
    assert all(cluster == clusters[0] for cluster in clusters)


def test_the_services_configuration_is_one_that_serve_takes() -> None:
    """As Serve reads it, nothing passed over, and its arguments as our application reads them."""
    plain = _serve_configuration()
    schema = ServeDeploySchema.model_validate(plain)
    assert schema.model_dump(mode="json", exclude_unset=True) == plain, "Serve passes over keys that it does not know"
    assert schema.applications[0].import_path == "serving.app:deploy"
    options = pytest.importorskip("serving.options", reason="needs the serving room")
    assert options.DeployArgs(**schema.applications[0].args).model == plain["applications"][0]["args"]["model"]


def _misspelt_route(plain: Plain) -> None:
    plain["applications"][0]["route_prefixes"] = plain["applications"][0].pop("route_prefix")


def _no_function(plain: Plain) -> None:
    plain["applications"][0]["import_path"] = "serving"


def _bad_serve_port(plain: Plain) -> None:
    plain["http_options"]["port"] = "eight"


@pytest.mark.parametrize("damage", [_misspelt_route, _no_function, _bad_serve_port])
def test_a_damaged_serve_configuration_is_refused(damage: Callable[[Plain], None]) -> None:
    """Serve refuses wrong values; what it silently passes over shows in what it read."""
    damaged = _serve_configuration()
    damage(damaged)
    try:
        assert ServeDeploySchema.model_validate(damaged).model_dump(mode="json", exclude_unset=True) != damaged
    except ValidationError as error:
        assert error.error_count() >= 1


def _serve_configuration() -> Plain:
    service = check_kuberay(_of("rayservice.yaml"))
    assert isinstance(service, RayService)
    plain = yaml.safe_load(service.spec.serveConfigV2)
    assert isinstance(plain, dict)
    return plain


@pytest.mark.parametrize("name", ["rayjob-train.yaml", "rayjob-batch.yaml"])
def test_a_jobs_environment_is_one_that_ray_takes(name: str) -> None:
    """Ray's own check of what the operator hands over."""
    job = check_kuberay(_of(name))
    assert isinstance(job, RayJob)
    assert job.spec.entrypoint.startswith(("python -m training.run ", "python -m serving.batch "))
    if job.spec.runtimeEnvYAML is not None:
        RuntimeEnv(**yaml.safe_load(job.spec.runtimeEnvYAML))


def test_an_environment_that_ray_does_not_take_is_refused() -> None:
    """A variable that is not text: 1 for "1"."""
    with pytest.raises(TypeError):
        RuntimeEnv(env_vars={"HF_HUB_OFFLINE": 1})


def test_only_predictions_are_open_to_other_pods() -> None:
    """Port 8000 for everybody, 8265 for whoever submits jobs, all others for the cluster's own pods."""
    policy = _of("network-policy.yaml")["spec"]
    assert policy["podSelector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
    for rule in policy["ingress"]:
        ports = [port["port"] for port in rule.get("ports", [])]
        if "from" not in rule:
            assert ports == [8000]
        elif not ports:
            assert rule["from"] == [{"podSelector": policy["podSelector"]}]
        else:
            assert ports == [8265]


def _gib(quantity: str) -> float:
    assert quantity.endswith("Gi"), quantity
    return float(quantity.removesuffix("Gi"))
