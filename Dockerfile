# syntax=docker/dockerfile:1
# For NVIDIA GPUs: docker build -t odm-neox . && docker run --gpus all --shm-size=1g -it odm-neox
# Another image of PyTorch 2.13.0: --build-arg BASE_IMAGE=... It runs as the user neox, not as root; files that it
# writes into a mounted folder belong to --build-arg USER_ID=$(id -u), else to 1000.
ARG BASE_IMAGE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-devel
FROM ${BASE_IMAGE}

# make drives the demo and the tests; an ssh client starts runs on several machines.
RUN apt-get update \
    && apt-get install -y --no-install-recommends make git openssh-client \
    && rm -rf /var/lib/apt/lists/*

# Images of PyTorch since 2.10 have the system's Python, in which pip installs only when told so.
ENV PIP_BREAK_SYSTEM_PACKAGES=1
RUN command -v python || ln -s "$(command -v python3)" /usr/local/bin/python

# Some images have a user of this number already. The folder is the user's: runs and make write into it.
ARG USER_ID=1000
RUN useradd --create-home --shell /bin/bash --non-unique --uid ${USER_ID} neox \
    && install --directory --owner neox --group neox /workspace/odm-neox
WORKDIR /workspace/odm-neox

# Requirements first: a change of the code does not install them again. The image's torch is kept,
# since requirements.txt pins the same version.
COPY requirements/ requirements/
RUN python -m pip install --no-cache-dir -r requirements/requirements.txt \
        -r requirements/requirements-tensorboard.txt -r requirements/requirements-wandb.txt

COPY --chown=neox:neox . .
RUN python -m pip install --no-cache-dir .

USER neox
ENV HOME=/home/neox
CMD ["bash"]
