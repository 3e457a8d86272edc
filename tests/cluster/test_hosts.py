"""Several hosts with addresses of their own: training across them, and through the loss of one."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from tests.cluster.hosts import hosts, why_not
from tests.training.digits import write_few_digits
from tests.training.faults import find, training

_EPOCHS = 6
_SETTINGS = (
    "ds=DIGITS",
    "model=tiny",
    "augment=none",
    "trainer=cpu",
    "trainer.precision=32",
    "num_workers=2",
    "data.batch_size=4",
    f"trainer.max_epochs={_EPOCHS}",
    "callbacks.early_stopping=null",
)


@pytest.mark.skipif(not os.environ.get("DRILL"), reason="takes two minutes; `make drill` runs it (DRILL=1)")
def test_a_host_that_is_cut_off_in_mid_epoch_costs_at_most_the_epoch(tmp_path: Path) -> None:
    """Nothing is closed and nothing is said: its worker just does not answer any more."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    write_few_digits(tmp_path / "data/raw_data/DIGITS", classes=3, each=60)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 64}
    with (
        hosts(3, cpus=1, environment=token) as made,
        training(tmp_path, *_SETTINGS, address=made.address, environment=token, prefix=made.on(0, tmp_path)) as run,
    ):
        run.wait_for(r"^Training on 2 workers")
        workers = {process.pid for process in find("ray::RayTrainWorker")}
        with_worker = [host for host in range(3) if workers & made.processes_on(host)]
        assert len(with_worker) == 2, "the workers are on one host"
        lost = with_worker[-1]
        run.wait_for(r"^Epoch   1")
        made.cut_off(lost)
        cut = time.monotonic()
        said = run.wait_for(r"starting anew from the last checkpoint", within_s=120)
        noticed_s = time.monotonic() - cut
        assert run.end(within_s=200) == 0, run.output

    assert re.search(rf"{re.escape(made.address_of(lost))}, process \d+\) was lost with its machine", said), said
    assert "Training goes on with epoch 2 on 2 workers.\n" in run.lines
    metrics = json.loads((run.model / "train_info/metrics.json").read_text())
    assert metrics["epochs"] == _EPOCHS
    assert noticed_s < 110, "Ray gives a machine five chances of 13 s"
