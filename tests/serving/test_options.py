"""The settings: typed, checked, and the same on every way in."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from classifier.errors import BadModelFolder, ConfigError
from serving.app import deploy, settle
from serving.options import DeployArgs

_YAML = Path(__file__).resolve().parents[2] / "configs" / "serve.yaml"


def test_the_command_line_is_typed_and_unknown_keys_are_refused(animals: Path) -> None:
    """As `serve run` calls it: every value is text."""
    app = call_user_app_builder_with_args_if_necessary(deploy, {"model": str(animals), "max_replicas": "3"})
    deployment = app._bound_deployment
    assert deployment._deployment_config.autoscaling_config.max_replicas == 3
    with pytest.raises(ValidationError, match="max_replica"):
        call_user_app_builder_with_args_if_necessary(deploy, {"model": str(animals), "max_replica": "3"})
    with pytest.raises(ValidationError, match="device"):
        DeployArgs.model_validate({"model": "EXAMS", "device": "tpu"})
    with pytest.raises(ValidationError, match="min_replicas=3 is above max_replicas=2"):
        DeployArgs.model_validate({"model": "EXAMS", "min_replicas": "3"})
    with pytest.raises(ValidationError, match="max_queue_mb=512 is less than two bodies of 300 MiB"):
        DeployArgs.model_validate({"model": "EXAMS", "max_batch_mb": "300"})


def test_a_model_that_cannot_be_used_stops_the_deployment_before_anything_starts(tmp_path: Path) -> None:
    """In one sentence that names what there is."""
    with pytest.raises(BadModelFolder, match=r"datasets with models in .*: none"):
        deploy(DeployArgs(model="EXAMS", models_dir=tmp_path))


def test_an_engine_that_the_model_or_the_device_does_not_have_stops_it_too(tiny_model: Path) -> None:
    """Before a replica tries, twenty times."""
    with pytest.raises(BadModelFolder, match=r"has no model\.onnx"):
        deploy(DeployArgs(model=str(tiny_model), backend="onnx"))
    with pytest.raises(ConfigError, match="backend=onnx runs on CPUs only"):
        settle(DeployArgs(model=str(tiny_model), backend="onnx", device="gpu"), key_digest=None)


def test_a_dataset_means_its_newest_model(animals: Path) -> None:
    """`model=ANIMALS` and `model=ANIMALS/default`, as well as a folder."""
    models_dir = animals.parents[3]
    for model in ("ANIMALS", "ANIMALS/default", str(animals)):
        (settings,) = deploy(DeployArgs(model=model, models_dir=models_dir, device="cpu"))._bound_deployment.init_args
        assert settings.args.model == str(animals)


def test_the_file_for_serve_deploy_is_valid_and_stays_on_this_machine() -> None:
    """Its arguments are the builder's own."""
    config = ServeDeploySchema.model_validate(yaml.safe_load(_YAML.read_text()))
    (application,) = config.applications
    assert application.import_path == "serving.app:deploy"
    assert config.http_options.host == "127.0.0.1"
    defaults = DeployArgs(model="EXAMS")
    args = DeployArgs.model_validate(application.args)
    assert args.model_copy(update={"model": "EXAMS"}) == defaults
