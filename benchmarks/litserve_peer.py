"""The same work in LitServe: a JPEG in, the same decode, pixels, network and top 3 out. Started by `serve.py`.

In the form that is best for it: bare bytes (its tutorials send base64 in JSON), batches of the same size that wait for
nobody, and as many workers as it is told to.
"""

import sys
from pathlib import Path
from typing import Annotated

import litserve
import numpy as np
import torch
from fastapi import Body

from classifier.predict import Predictor, top
from classifier.preprocess import load_pixels


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.predictor = Predictor.load(Path(sys.argv[1]), device="cpu")
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
    _, _, port, workers = sys.argv
    api = Classifier(max_batch_size=16, batch_timeout=0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(workers), fast_queue=True)
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False)
