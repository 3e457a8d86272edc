# syntax=docker/dockerfile:1.7
#
# One image for every node: head, worker, job, server. A Ray cluster wants the same Python, the same Ray and the same code
# everywhere, and one image is how to be sure of it.
#
#   docker build -t class-folders .                              CPU
#   docker build -t class-folders --build-arg TORCH=cu130 .      NVIDIA GPU (CUDA 13.0: driver 580 or newer)
#
# Layers go from what changes least to what changes most: an edit to the code rebuilds the last one only.
ARG PYTHON_VERSION=3.11.14
FROM python:${PYTHON_VERSION}-slim-bookworm

# `cpu`, or a CUDA version as the PyTorch index names it. The CUDA libraries come as wheels, so the base stays the same.
ARG TORCH=cpu

# wget: the probes of Docker and of KubeRay call it. ssh and rsync: `ray up` starts nodes and copies files with them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/*

# /run/secrets: where the cluster's token is written; /cache: the model hub's files. A volume that is mounted there takes
# over the owner and the mode, so they have to be right for whichever user the container runs as.
RUN useradd --uid 1000 --user-group --create-home app \
    && install --directory --owner=app --group=app /app /app/data /app/models /app/input /app/out \
    && install --directory --owner=app --group=app --mode=1777 /run/secrets /cache

WORKDIR /app
COPY constraints.txt pyproject.toml ./

# torch by itself and first: the largest layer, and the only package that does not come from PyPI.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --constraint constraints.txt --index-url "https://download.pytorch.org/whl/${TORCH}" torch

# The other dependencies, by name from pyproject.toml and by version from constraints.txt, without the project itself.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/requirements.txt \
    && pip install --constraint constraints.txt --requirement /tmp/requirements.txt \
    && rm /tmp/requirements.txt

# HOME and USER are set because the container may run as a user that /etc/passwd does not know (`APP_UID`).
ENV HOME=/home/app \
    USER=app \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    RAY_USAGE_STATS_ENABLED=0
RUN chmod 1777 /home/app

COPY --chown=app:app classifier ./classifier
COPY --chown=app:app cluster ./cluster
COPY --chown=app:app configs ./configs
COPY --chown=app:app training ./training
COPY --chown=app:app serving ./serving

# By number: Kubernetes cannot tell whether a name is root.
USER 1000:1000
# tensorboard, serve, GCS, dashboard
EXPOSE 6006 8000 6379 8265
CMD ["python", "-m", "training.run", "--help"]
