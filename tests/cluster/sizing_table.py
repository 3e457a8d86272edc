"""The tables of docs/sizing.md: `python -m tests.cluster.sizing_table` writes them anew."""

from pathlib import Path

from classifier.errors import ClusterError
from cluster.sizing import Capacity, Node, Plan, Workers, admission_cpus, plan_training

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sizing.md"
BEGIN, END = "<!-- sizing table: begin -->", "<!-- sizing table: end -->"

_ONE_MACHINE: list[tuple[int, int, Workers]] = [
    (1, 0, "auto"),
    (2, 0, "auto"),
    (2, 0, 4),
    (8, 0, "auto"),
    (8, 0, 4),
    (8, 0, 16),
    (8, 1, "auto"),
    (8, 1, 2),
    (64, 8, "auto"),
    (64, 8, 4),
    (64, 8, 16),
]
_CLUSTERS: list[tuple[str, tuple[Node, ...], Workers]] = [
    ("1 x 2 CPUs", (Node(2, 0),), 4),
    ("1 x 2 CPUs", (Node(2, 0),), 64),
    ("4 x 2 CPUs", (Node(2, 0),) * 4, 4),
    ("head without CPUs, 3 x 8 CPUs", (Node(0, 0), *(Node(8, 0),) * 3), "auto"),
    ("head without CPUs, 3 x 8 CPUs", (Node(0, 0), *(Node(8, 0),) * 3), 12),
    ("2 x (32 CPUs, 4 GPUs)", (Node(32, 4),) * 2, "auto"),
    ("2 x (32 CPUs, 4 GPUs)", (Node(32, 4),) * 2, 12),
    ("1 x 4 CPUs", (Node(4, 0),), (2, 8)),
    ("4 x 4 CPUs", (Node(4, 0),) * 4, (2, 8)),
    ("1 x (32 CPUs, 4 GPUs)", (Node(32, 4),), (2, 8)),
]
_HEAD = "| num_workers | workers | CPUs each | threads each | decode tasks |\n"
_RULE = "| --- | --- | --- | --- | --- |\n"


def tables() -> str:
    """Both tables as Markdown, from `plan_training` itself."""
    text = f"Started here:\n\n| cores | GPUs {_HEAD}| --- | --- {_RULE}"
    for cores, gpus, workers in _ONE_MACHINE:
        capacity = Capacity(cpus=admission_cpus(cores, workers), gpus=gpus, cores=cores)
        text += f"| {cores} | {gpus} | {_outcome(capacity, workers)} |\n"
    text += f"\nOn a cluster that runs already:\n\n| cluster {_HEAD}| --- {_RULE}"
    for name, nodes, workers in _CLUSTERS:
        cpus = sum(node.cpus for node in nodes)
        capacity = Capacity(cpus=cpus, gpus=sum(node.gpus for node in nodes), cores=cpus, nodes=nodes)
        text += f"| {name} | {_outcome(capacity, workers)} |\n"
    return text


def page(current: str) -> str:
    """docs/sizing.md with its tables made anew."""
    before, _, rest = current.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}{END}{rest.partition(END)[2]}"


def _outcome(capacity: Capacity, workers: Workers) -> str:
    asked = f"{workers[0]}..{workers[1]}" if isinstance(workers, tuple) else workers
    try:
        return f"{asked} | {_cells(plan_training(capacity, num_workers=workers, device='auto'))}"
    except ClusterError as error:
        return f"{asked} | {error} | | |"


def _cells(plan: Plan) -> str:
    where = "GPU" if plan.use_gpu else "CPU"
    return (
        f"{plan.num_workers} on {where} | {plan.cpus_per_worker:g} | {plan.threads_per_worker} | "
        f"{plan.decode_tasks} x {plan.decode_cpus:g} CPU"
    )


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
