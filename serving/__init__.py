"""One request (`app.py`, Ray Serve) and one folder (`batch.py`, Ray Data), answered by the same `Predictor`."""
