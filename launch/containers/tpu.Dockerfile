# Cloud TPUs. libtpu comes with the packages.
#
#   docker build -f launch/containers/tpu.Dockerfile -t affectgpt-tpu .
#   docker run --rm --privileged --net=host -v "$PWD/runs:/affectgpt/runs" affectgpt-tpu v5e CONFIG
FROM python:3.12-slim
WORKDIR /affectgpt
COPY requirements/py312.lock requirements/
COPY pyproject.toml README.md LICENSE CHANGELOG.md CITATION.cff ./
COPY affectgpt_jax affectgpt_jax
COPY data_prep data_prep
COPY configs configs
RUN pip install --no-cache-dir -c requirements/py312.lock '.[tpu,gcs]'
COPY launch launch
ENTRYPOINT ["launch/local.sh"]
CMD ["--help"]
