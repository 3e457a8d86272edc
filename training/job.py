"""From settings and catalog to what the workers are told, and the actor that feeds them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from classifier.preprocess import PreprocessSpec
from cluster.sizing import Plan
from training.catalog import Catalog
from training.config import TrainConfig
from training.feed import Feed, FeedPlan
from training.loop import Job
from training.run_folder import RunFolder
from training.split import SPLITS
from training.stream import TASKS_A_CORE, decode_tasks


@contextlib.contextmanager
def plan_job(
    config: TrainConfig,
    catalog: Catalog,
    spec: PreprocessSpec,
    plan: Plan,
    folder: RunFolder,
    shards: dict[str, Path] | None,
) -> Iterator[Job]:
    """Say what is to be decoded, where to (`cache.pixel_cache`), and what the workers are to do.

    At the end the decoded pixels are let go.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    paths, codes = _in_order(catalog, seed=config.seed)
    name = f"{config.ds}-{folder.path.parent.name}-{folder.path.name}"
    pictures, size_bytes = sum(len(split) for split in paths.values()), _size_bytes(catalog)
    feed_plan = FeedPlan(
        root=catalog.root,
        splits=paths,
        spec=spec,
        mean_bytes=size_bytes / pictures,
        decode_cpus=plan.decode_cpus / TASKS_A_CORE,
        decode_tasks=decode_tasks(cores=plan.decode_tasks, pictures=pictures, size_bytes=size_bytes),
        shards=shards,
        name=name,
        max_bad_share=config.data.max_bad_share,
    )
    # Beside the driver, whose end is the run's end in any case: elsewhere a second machine could end it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    feed = ray.remote(num_cpus=0)(Feed).options(name=f"feed-{name}", scheduling_strategy=here).remote(feed_plan)
    try:
        yield Job(
            config=_with_whole_paths(config).model_dump(mode="json"),
            spec=spec.model_dump(mode="json"),
            labels=catalog.labels,
            codes=codes,
            test_paths=paths["test"].to_pylist(),
            dataset={"name": catalog.name, "fingerprint": catalog.fingerprint, "counts": catalog.counts()},
            folder=folder.path,
            run=name,
            attempt=attempt_name(folder, name),
            threads=plan.threads_per_worker,
            feed=feed,
        )
    finally:
        ray.kill(feed)


def attempt_name(folder: RunFolder, run: str) -> str:
    """What the next Train run of a folder is called; the dashboard shows it."""
    return f"train-{len(folder.attempts()):02d}-{run}"


def _with_whole_paths(config: TrainConfig) -> TrainConfig:
    """A relative model folder means the one where the command was typed, not one in a worker's working directory."""
    folder = Path(config.model.model_name).expanduser()
    if config.model.config is not None or not folder.is_dir():
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"model_name": str(folder.absolute())})})


def _size_bytes(catalog: Catalog) -> int:
    used = pc.equal(catalog.table["state"], "used")
    return int(pc.sum(catalog.table.filter(used)["size_bytes"]).as_py())


def _in_order(catalog: Catalog, *, seed: int) -> tuple[dict[str, pa.Array], dict[str, np.ndarray]]:
    """Each split's pictures in the order in which they are decoded: `train` shuffled, the others by path."""
    labels = pa.array(catalog.labels, pa.string())
    paths, codes = {}, {}
    for split in SPLITS:
        table = catalog.pictures(split)
        order = np.arange(table.num_rows)
        if split == "train":
            np.random.default_rng(seed).shuffle(order)
        table = table.take(order)
        paths[split] = table["path"].combine_chunks()
        codes[split] = pc.index_in(table["label"], value_set=labels).to_numpy().astype(np.int64)
    return paths, codes
