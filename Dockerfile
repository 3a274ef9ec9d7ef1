# Two images from the lock files:
#   docker build --target cpu  -t banpick:cpu .     the embedded model's sweep on any x86-64 machine
#   docker build --target cuda -t banpick:cuda .    GPU engines; the image of sweeps/*/job.rayjob.yaml
#   docker run --rm --shm-size=2g -v banpick-outputs:/work/outputs banpick:cpu
#   docker run --rm --shm-size=2g banpick:cpu verify           is the image sound: does its engine route as it should?
# Another base with Python 3.11 or 3.12 (a mirror, a pinned digest): --build-arg CPU_BASE=... or CUDA_BASE=...
# tests/house/test_image.py builds and runs the CPU image with buildah on a base made by debootstrap; the CUDA image has
# not been built yet.
ARG CPU_BASE=python:3.11-slim-bookworm
ARG CUDA_BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04


# What both CPU stages need: libnuma and a C++ compiler for vLLM, wget for Kubernetes health probes.
FROM ${CPU_BASE} AS cpu-system
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 wget \
    && rm -rf /var/lib/apt/lists/*

FROM cpu-system AS cpu-build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY requirements-cpu.lock ./
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps --require-hashes --no-compile \
        --extra-index-url "${TORCH_INDEX}" -r requirements-cpu.lock
COPY pyproject.toml README.md ./
COPY conf ./conf
COPY kernels ./kernels
COPY sweeps ./sweeps
COPY banpick_exp ./banpick_exp
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .


# CUDA's own toolkit, because FlashInfer and Triton compile kernels at run time; Ubuntu 24.04 brings Python 3.12.
FROM ${CUDA_BASE} AS cuda-system
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 python3 python3-dev python3-venv wget \
    && rm -rf /var/lib/apt/lists/*

FROM cuda-system AS cuda-build
WORKDIR /source
COPY requirements-cuda.lock ./
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps --require-hashes --no-compile -r requirements-cuda.lock
COPY pyproject.toml README.md ./
COPY conf ./conf
COPY kernels ./kernels
COPY sweeps ./sweeps
COPY banpick_exp ./banpick_exp
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .


# KubeRay starts Ray through a login shell, which sets PATH anew: hence profile.d beside ENV.
FROM cuda-system AS cuda
COPY --from=cuda-build /opt/venv /opt/venv
RUN useradd --create-home --uid 10001 --shell /bin/bash banpick \
    && echo "export PATH=/opt/venv/bin:\$PATH" > /etc/profile.d/venv.sh \
    && install --directory --owner=banpick /work /work/outputs
ENV PATH=/opt/venv/bin:$PATH HF_HOME=/work/.cache/huggingface
USER 10001
WORKDIR /work
# Its GPUs belong to the sweep, and Kubernetes has probes of its own.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "banpick_exp"]
CMD ["--help"]


# Last, so that a build without --target makes the image that runs everywhere.
FROM cpu-system AS cpu
COPY --from=cpu-build /opt/venv /opt/venv
RUN useradd --create-home --uid 10001 --shell /bin/bash banpick \
    && echo "export PATH=/opt/venv/bin:\$PATH" > /etc/profile.d/venv.sh \
    && install --directory --owner=banpick /work /work/outputs
ENV PATH=/opt/venv/bin:$PATH HF_HOME=/work/.cache/huggingface
USER 10001
WORKDIR /work
# By loading an engine of its own, so seldom: beside a running sweep it would be in the timings.
HEALTHCHECK --interval=24h --timeout=10m --retries=1 CMD ["python", "-m", "banpick_exp", "verify"]
ENTRYPOINT ["python", "-m", "banpick_exp"]
CMD ["+sweep=pick_strength"]
