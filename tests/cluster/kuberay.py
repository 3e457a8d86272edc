"""The part of KubeRay's `ray.io/v1` that our files use, closed: a field that is not here is a misspelling, or wants adding.

The operator's own schema is in no package index. Field names and types are those of its API reference for v1.7.0.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PodTemplate = dict[str, Any]  # Kubernetes' own schema checks it
RayStartParams = dict[str, Annotated[str, Field(strict=True)]]  # 0 without quotes is refused by the operator


class Part(BaseModel):
    """Nothing unknown, and no text where a number belongs."""

    model_config = ConfigDict(extra="forbid", strict=True)


class AuthOptions(Part):
    mode: Literal["disabled", "token"]
    secretName: str | None = None


class Metadata(Part):
    name: str | None = None
    generateName: str | None = None


class HeadGroup(Part):
    rayStartParams: RayStartParams
    template: PodTemplate


class WorkerGroup(Part):
    groupName: str
    replicas: int = Field(ge=0)
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=0)
    rayStartParams: RayStartParams
    template: PodTemplate


class RayClusterSpec(Part):
    rayVersion: str
    authOptions: AuthOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = Field(min_length=1)


class SubmitterConfig(Part):
    backoffLimit: int = Field(ge=0)


class RayJobSpec(Part):
    entrypoint: str = Field(min_length=1)
    backoffLimit: int = Field(ge=0)
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    submitterConfig: SubmitterConfig
    activeDeadlineSeconds: int = Field(gt=0)
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int = Field(ge=0)
    runtimeEnvYAML: str | None = None
    rayClusterSpec: RayClusterSpec


class UpgradeStrategy(Part):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]


class RayServiceSpec(Part):
    upgradeStrategy: UpgradeStrategy
    excludeHeadPodFromServeSvc: bool
    serveConfigV2: str
    rayClusterConfig: RayClusterSpec


class RayCluster(Part):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec

    @property
    def cluster(self) -> RayClusterSpec:
        return self.spec


class RayJob(Part):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec

    @property
    def cluster(self) -> RayClusterSpec:
        return self.spec.rayClusterSpec


class RayService(Part):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: RayServiceSpec

    @property
    def cluster(self) -> RayClusterSpec:
        return self.spec.rayClusterConfig


Resource = RayCluster | RayJob | RayService
KINDS: dict[str, type[Resource]] = {"RayCluster": RayCluster, "RayJob": RayJob, "RayService": RayService}
