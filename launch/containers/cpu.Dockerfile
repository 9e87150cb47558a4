# The CPU: a try, or preparing a corpus.
#
#   docker build -f launch/containers/cpu.Dockerfile -t affectgpt-cpu .
#   docker run --rm -v "$PWD/runs:/affectgpt/runs" affectgpt-cpu cpu CONFIG
FROM python:3.12-slim
WORKDIR /affectgpt
COPY requirements/py312.lock requirements/
COPY pyproject.toml README.md LICENSE CHANGELOG.md CITATION.cff ./
COPY affectgpt_jax affectgpt_jax
COPY data_prep data_prep
COPY configs configs
RUN pip install --no-cache-dir -c requirements/py312.lock .
COPY launch launch
ENTRYPOINT ["launch/local.sh"]
CMD ["--help"]
