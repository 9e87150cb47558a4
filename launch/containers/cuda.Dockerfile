# NVIDIA GPUs. CUDA, cuDNN and NCCL come with the packages; the machine has the driver and the container toolkit.
#
#   docker build -f launch/containers/cuda.Dockerfile -t affectgpt-cuda .
#   docker run --rm --gpus all --shm-size 16g -v "$PWD/runs:/affectgpt/runs" affectgpt-cuda h100 CONFIG
FROM python:3.12-slim
# What the container toolkit hands in.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /affectgpt
COPY requirements/py312.lock requirements/
COPY pyproject.toml README.md LICENSE CHANGELOG.md CITATION.cff ./
COPY affectgpt_jax affectgpt_jax
COPY data_prep data_prep
COPY configs configs
RUN pip install --no-cache-dir -c requirements/py312.lock '.[cuda]'
COPY launch launch
ENTRYPOINT ["launch/local.sh"]
CMD ["--help"]
