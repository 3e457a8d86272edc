"""Our own Prometheus metrics, beside those of Ray Serve (which count requests, latency and replicas)."""

from ray.serve.metrics import Counter, Histogram

_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]


class Meters:
    """The counters of one replica. Ray's agent exports them as `ray_classifier_*`."""

    def __init__(self) -> None:
        self._predictions = Counter(
            "classifier_predictions", description="Pictures answered, by most probable label.", tag_keys=("label",)
        )
        self._rejected = Counter(
            "classifier_rejected_inputs", description="Inputs that got a 4xx or 503, by reason.", tag_keys=("reason",)
        )
        self._batch_size = Histogram(
            "classifier_batch_size",
            description="Pictures in one forward pass.",
            boundaries=[1, 2, 4, 8, 16, 32, 64, 128],
        )
        self._decode = Histogram(
            "classifier_decode_seconds", description="Bytes to pixels, one picture.", boundaries=_SECONDS
        )
        self._forward = Histogram(
            "classifier_forward_seconds", description="Pixels to probabilities, one batch.", boundaries=_SECONDS
        )

    def predicted(self, label: str) -> None:
        """Count an answer."""
        self._predictions.inc(tags={"label": label})

    def rejected(self, reason: str) -> None:
        """Count an input that could not be used."""
        self._rejected.inc(tags={"reason": reason})

    def decoded(self, seconds: float) -> None:
        """Note how long one picture took from bytes to pixels."""
        self._decode.observe(seconds)

    def forwarded(self, size: int, seconds: float) -> None:
        """Note the size of a batch, and how long the network took for it."""
        self._batch_size.observe(size)
        self._forward.observe(seconds)
