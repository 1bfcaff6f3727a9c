ARG PYTHON=python:3.12-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY mesh_api mesh_api
COPY pilotfish pilotfish
# `pilotfish capture` needs the standard library alone.
RUN python -m venv --without-pip /opt/pilotfish \
 && pip --python /opt/pilotfish/bin/python install --no-cache-dir --disable-pip-version-check --no-deps .

FROM ${PYTHON}
RUN apt-get update \
 && apt-get install -y --no-install-recommends nftables iptables \
 && rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/*
COPY --from=build /opt/pilotfish /opt/pilotfish
ENV PATH=/opt/pilotfish/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Root, with NET_ADMIN and NET_RAW alone: it sets rules in the pod's network namespace and ends.
USER 0:0
ENTRYPOINT ["/opt/pilotfish/bin/python", "-P", "-m", "pilotfish"]
CMD ["capture", "--help"]
