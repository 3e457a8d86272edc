"""The same work in LitServe: a JPEG in, the same decode, pixels, network (by PyTorch) and top 3 out.

    python -m benchmarks.litserve_peer MODEL PORT [workers=2] [api_servers=1] [fast_queue=1]

In the form that is best for it: bare bytes (its tutorials send base64 in JSON), batches of the same size that wait for
nobody, ZeroMQ between its processes. Two workers gave 226 requests/s at 16 clients on two cores and one gave 170 (at
one client one worker has the better p50: 9.5 against 11.2 ms); a second API server changed nothing. `serve.py` starts it.
"""

import sys
from pathlib import Path
from typing import Annotated

import litserve
import numpy as np
from fastapi import Body

from classifier.predict import Predictor, top
from classifier.preprocess import load_pixels


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.predictor = Predictor.load(Path(sys.argv[1]), device="cpu", backend="torch", threads=1)
        self.predictor.warm_up()

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> np.ndarray:
        return load_pixels(request, self.predictor.spec)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.predictor.probabilities(x)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, object]:
        best = top(output, labels=self.predictor.labels)
        return {"predictions": [label._asdict() for label in best]}


if __name__ == "__main__":
    _, _, port, *given = sys.argv
    options = {
        "workers": 2,
        "api_servers": 1,
        "fast_queue": 1,
        **{k: int(v) for k, _, v in (g.partition("=") for g in given)},
    }
    api = Classifier(max_batch_size=16, batch_timeout=0.0)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=options["workers"], fast_queue=bool(options["fast_queue"])
    )
    server.run(
        host="127.0.0.1",
        port=int(port),
        num_api_servers=options["api_servers"],
        log_level="warning",
        generate_client_file=False,
    )
