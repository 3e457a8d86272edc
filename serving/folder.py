"""A folder through Ray Data: list -> decode -> answer -> write, every chunk of pictures a row.

A chunk travels as one row because Ray Data cuts and joins blocks by their bytes: the pictures of a row stay together,
so a batch is what was listed together, whatever the number of workers.
"""

import functools
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from classifier.errors import ClassifierError, ClusterError
from cluster.sizing import physical_cores
from serving.listing import Chunk, list_chunks
from serving.sizing import LIST_CPUS, WRITE_CPUS, Plan
from serving.stages import Answerer, Decoded, Decoder, Outcome, Writer
from serving.storage import LocalStorage, Storage

if TYPE_CHECKING:
    import ray
    from ray.actor import ActorHandle

    from classifier.predict import Device

# Small, so that a folder of a hundred pictures keeps every core busy.
_CHUNK_HERE = 16
_ANSWER_LIMIT_S = 60.0
_PAYLOAD = pa.schema([("payload", pa.large_binary())])


class Tally:
    """An actor that knows how much was listed while the listing goes on, apart from what came out of the pipeline."""

    def __init__(self) -> None:
        self._pictures: dict[int, int] = {}
        self._others = 0
        self._finished = False

    def add(self, chunk: int, pictures: int, others: int) -> None:
        """Count a chunk; a chunk that is listed again, because a worker died, counts once."""
        self._pictures[chunk] = pictures
        self._others = max(self._others, others)

    def finish(self) -> None:
        """The listing is at its end."""
        self._finished = True

    def total(self) -> tuple[int, int, bool]:
        """Pictures, other files, and whether that is all of them."""
        return sum(self._pictures.values()), self._others, self._finished


def start_tally() -> "ActorHandle[Any]":
    """A `Tally` beside the driver, whose end is the run's end in any case: elsewhere a second machine could end it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Tally).options(num_cpus=0, scheduling_strategy=here).remote()


def total_of(tally: "ActorHandle[Any]") -> tuple[int, int, bool]:
    """As `Tally.total`.

    Raises:
        ClusterError: it does not answer.
    """
    import ray

    try:
        found: tuple[int, int, bool] = ray.get(tally.total.remote(), timeout=_ANSWER_LIMIT_S)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError) as error:
        raise ClusterError(
            f"the cluster does not say how much was listed ({type(error).__name__}); what is done is kept: the same "
            "command goes on from here"
        ) from error
    return found


@dataclass(frozen=True)
class Job:
    """What a run does, whatever it runs on."""

    source: Storage
    model: Path
    device: "Device"
    top_k: int
    batch_size: int
    decoder: Decoder
    writer: Writer


def outcomes_here(job: Job, tally: Tally) -> Iterator[Outcome]:
    """Do a small folder in this process, a chunk on each core: starting Ray would take longer."""

    def counted() -> Iterator[Chunk]:
        for chunk in list_chunks(job.source, size=min(job.batch_size, _CHUNK_HERE)):
            tally.add(chunk.number, len(chunk.found), chunk.others)
            yield chunk

    return outcomes_of(job, counted(), cores=physical_cores())


def outcomes_of(job: Job, chunks: Iterable[Chunk], *, cores: int) -> Iterator[Outcome]:
    """Do chunks in this process, as many at a time as there are cores; their outcomes come in their order."""
    # Threads of PyTorch that share one small batch mostly wait for each other: a batch for each core is twice as fast.
    threads = 1 if cores > 1 else None

    @functools.cache
    def answerer() -> Answerer:
        return Answerer(job.model, device=job.device, threads=threads, top_k=job.top_k)

    lock = threading.Lock()

    def do(chunk: Chunk) -> Outcome:
        decoded = job.decoder(chunk)
        if not len(decoded.pixels):  # where all is done no model is needed
            return job.writer(decoded)
        with lock:
            answer = answerer()
        return job.writer(answer(decoded))

    waiting: deque[Future[Outcome]] = deque()
    pool = ThreadPoolExecutor(cores)
    try:
        for chunk in chunks:
            waiting.append(pool.submit(do, chunk))
            if len(waiting) > cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def outcomes_on_ray(job: Job, plan: Plan, tally: "ActorHandle[Any]") -> Iterator[Outcome]:
    """Do a folder of any size on the Ray that this process has joined; outcomes come in any order.

    Raises:
        ClassifierError: what a worker raised, as it was there.
    """
    import ray

    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # a block is a row
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):
        chunks = _dataset(job, plan, tally)
        batches = chunks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
        for table in batches:
            for outcome in _unpack(table):
                if isinstance(outcome, ClassifierError):
                    raise outcome
                yield outcome


def _dataset(job: Job, plan: Plan, tally: "ActorHandle[Any]") -> "ray.data.Dataset":
    from ray.data import ActorPoolStrategy, read_datasource

    # Writing to this machine takes a tenth of a millisecond. A bucket takes many, and a GPU must not wait for either.
    writes_apart = plan.use_gpu or not isinstance(job.writer.target, LocalStorage)
    listed = read_datasource(_listing(job, tally), override_num_blocks=1, concurrency=1, num_cpus=LIST_CPUS)
    # On CPUs both stages ask for the same, so Ray Data runs them as one, in the actors, and no pixels are moved.
    decoded = listed.map_batches(
        _packed(job.decoder), batch_size=None, batch_format="pyarrow", num_cpus=plan.decode_cpus, zero_copy_batch=True
    )
    answered = decoded.map_batches(
        _PackedAnswerer,
        fn_constructor_kwargs={
            "model": job.model,
            "device": "gpu" if plan.use_gpu else "cpu",
            "threads": None if plan.use_gpu else plan.threads,
            "top_k": job.top_k,
            "writer": None if writes_apart else job.writer,
        },
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=plan.workers),
        num_cpus=plan.worker_cpus,
        num_gpus=1 if plan.use_gpu else None,
    )
    if not writes_apart:
        return answered
    return answered.map_batches(
        _packed(job.writer),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=WRITE_CPUS,
        concurrency=max(2, plan.workers),
    )


def _listing(job: Job, tally: "ActorHandle[Any]") -> "ray.data.Datasource":
    from ray.data import Datasource
    from ray.data.block import BlockMetadata
    from ray.data.datasource import ReadTask

    source, size = job.source, job.batch_size

    def read() -> Iterator[pa.Table]:
        for chunk in list_chunks(source, size=size):
            tally.add.remote(chunk.number, len(chunk.found), chunk.others)
            yield _pack(chunk)
        tally.finish.remote()

    class Listing(Datasource):
        """One task that yields chunks while it lists."""

        def get_name(self) -> str:
            return "List"

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            return [ReadTask(read, BlockMetadata(None, None, None, None))]

    return Listing()


class _PackedAnswerer:
    """An `Answerer` in an actor, and the `Writer` where they work together."""

    def __init__(self, *, writer: Writer | None, **arguments: Any) -> None:
        self._writer = writer
        self._fault: ClassifierError | None = None
        try:
            self._answerer = Answerer(**arguments)
        except ClassifierError as error:
            self._fault = error

    def __call__(self, table: pa.Table) -> pa.Table:
        return _each(self._answer, table)

    def _answer(self, decoded: Decoded) -> Decoded | Outcome:
        if self._fault is not None:
            raise self._fault
        answered = self._answerer(decoded)
        return answered if self._writer is None else self._writer(answered)


def _packed(stage: Callable[[Any], Any]) -> Callable[[pa.Table], pa.Table]:
    def run(table: pa.Table) -> pa.Table:
        return _each(stage, table)

    run.__name__ = type(stage).__name__  # Ray's dashboard and log show it
    return run


def _each(stage: Callable[[Any], Any], table: pa.Table) -> pa.Table:
    """Apply a stage to every row. An error that is the user's to mend travels to the terminal as a row: raised in a
    worker, Ray would make it a text of its own type."""
    results = []
    for value in _unpack(table):
        try:
            results.append(_pack(value if isinstance(value, ClassifierError) else stage(value)))
        except ClassifierError as error:
            results.append(_pack(error))
    return pa.concat_tables(results)


def _pack(value: Any) -> pa.Table:
    return pa.table([pa.array([pickle.dumps(value, protocol=5)], pa.large_binary())], schema=_PAYLOAD)


def _unpack(table: pa.Table) -> Iterator[Any]:
    for payload in table["payload"]:
        yield pickle.loads(payload.as_buffer())  # noqa: S301 - written by _pack, in this run
