# The worker in an image: `docker build -t appjwt-worker .`, or any other builder.
# The base must have Python 3.11 or newer; both stages take the same one, since a virtual environment points to it.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN python3 -m venv /build && /build/bin/python -m pip install --no-cache-dir --require-hashes -r requirements/build.txt \
    && python3 -m venv /venv && /venv/bin/python -m pip install --no-cache-dir --require-hashes -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY config config
COPY worker worker
RUN /build/bin/python -m hatchling build -t wheel -d dist \
    && /venv/bin/python -m pip install --no-cache-dir --no-deps --no-index dist/*.whl \
    && /venv/bin/python -m pip uninstall --yes --quiet pip setuptools \
    && python3 -m compileall -q /venv/lib

FROM ${BASE}
LABEL org.opencontainers.image.title="appjwt-worker" \
      org.opencontainers.image.description="Keeps a live LivePerson AppJWT for every account in HashiCorp Vault or OpenBao" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /venv /venv
ENV PATH=/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["appjwt-worker"]
